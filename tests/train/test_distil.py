"""Distillation loss against the formulas worked out by hand."""

import math

import pytest
import torch

from trimtab.core.errors import InputError
from trimtab.graph.model import Outputs
from trimtab.train.distil import distillation_loss, taught_loss
from trimtab.train.recipe import Distillation

STUDENT = torch.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]])
TEACHER = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
LABELS = torch.tensor([0, 1])
# KL((1/2, 1/2) || (1/4, 3/4)) = (log 2 + log 2/3) / 2, and 0 for the second sample
KL = 0.5 * (0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0))


def test_classes_at_temperature_one():
    loss = distillation_loss(STUDENT, TEACHER, LABELS, Distillation(temperature=1.0))
    assert float(loss) == pytest.approx(KL, rel=1e-5)


def test_the_temperature_squared_is_there():
    # logits twice as large at T = 2 are the same distributions
    loss = distillation_loss(2 * STUDENT, 2 * TEACHER, LABELS, Distillation(temperature=2.0))
    assert float(loss) == pytest.approx(4 * KL, rel=1e-5)


def test_the_gradient_is_that_of_hintons_soft_cross_entropy():
    t = 3.0
    student, teacher = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    (mine,) = torch.autograd.grad(distillation_loss(student, teacher, None, Distillation(t)), student)
    soft = -((teacher / t).softmax(1) * (student / t).log_softmax(1)).sum(1).mean() * t * t
    (theirs,) = torch.autograd.grad(soft, student)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("shape", "target", "match", "classes"),
    [
        ((4, 3), None, "auto", 1),
        ((4, 1), None, "auto", None),
        ((4,), None, "auto", None),
        ((4, 3), torch.zeros(4, dtype=torch.int64), "auto", 1),
        ((4, 3), torch.zeros(4, 3), "auto", None),
        ((4, 3), None, "values", None),
        ((4, 6, 3), torch.zeros(4, 6, dtype=torch.int64), "auto", 2),
        ((4, 6, 3), torch.zeros(4, 3, dtype=torch.int64), "auto", 1),
        ((4, 6, 3), None, "auto", None),
        ((4, 6, 3), None, "classes", 2),
        ((4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.int64), "auto", 1),
        ((4, 3, 5, 5), None, "auto", None),
    ],
)
def test_where_the_classes_are(shape, target, match, classes):
    student, teacher = torch.randn(shape), torch.randn(shape)
    loss = distillation_loss(student, teacher, target, Distillation(temperature=1.0, match=match))
    if classes is None:
        expected = (student - teacher).square().mean()
    else:
        p, q = teacher.log_softmax(classes), student.log_softmax(classes)
        expected = (p.exp() * (p - q)).sum(classes).mean()
    torch.testing.assert_close(loss, expected)


def test_outputs_are_summed_and_integer_ones_left_out():
    student = Outputs(a=torch.ones(2), b=torch.ones(2), index=torch.zeros(2, dtype=torch.int64))
    teacher = Outputs(a=torch.zeros(2), b=torch.full((2,), 3.0), index=torch.ones(2, dtype=torch.int64))
    assert float(distillation_loss(student, teacher, None, Distillation())) == pytest.approx(1.0 + 4.0)


def test_other_outputs_are_refused():
    with pytest.raises(InputError, match=r"of the student output \[2, 3\], expected of the teacher output \[2, 4\]"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), None, Distillation())


def test_a_single_output_may_have_another_name():
    loss = distillation_loss({"logits": STUDENT}, TEACHER, LABELS, Distillation(temperature=1.0))
    assert float(loss) == pytest.approx(KL, rel=1e-5)


def test_several_teachers_by_the_mean_of_their_losses():
    other = torch.log(torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    # KL((0.1, 0.9) || (1/4, 3/4)) of the first sample, with a quarter of the weight
    more = 0.5 * (0.1 * math.log(0.1 / 0.25) + 0.9 * math.log(0.9 / 0.75))
    settings = Distillation(temperature=1.0, weights=(3.0, 1.0))
    loss = taught_loss(STUDENT, [TEACHER, other], LABELS, settings)
    assert float(loss) == pytest.approx(0.75 * KL + 0.25 * more, rel=1e-5)
    even = taught_loss(STUDENT, [TEACHER, other], LABELS, Distillation(temperature=1.0))
    assert float(even) == pytest.approx(0.5 * KL + 0.5 * more, rel=1e-5)


def test_several_teachers_by_the_mean_of_their_probabilities():
    t = 2.0
    other = t * torch.log(torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    settings = Distillation(temperature=t, weights=(1.0, 3.0), mean="probabilities")
    # the mean of (1/2, 1/2) and three times (0.1, 0.9) is (0.2, 0.8)
    expected = t * t * 0.5 * (0.2 * math.log(0.2 / 0.25) + 0.8 * math.log(0.8 / 0.75))
    assert float(taught_loss(t * STUDENT, [TEACHER, other], LABELS, settings)) == pytest.approx(expected, rel=1e-4)


def test_several_teachers_of_values_by_their_mean():
    settings = Distillation(match="values", mean="probabilities")
    loss = taught_loss(torch.zeros(2, 3), [torch.ones(2, 3), torch.full((2, 3), 3.0)], None, settings)
    assert float(loss) == pytest.approx(4.0)
    losses = taught_loss(
        torch.zeros(2, 3), [torch.ones(2, 3), torch.full((2, 3), 3.0)], None, Distillation(match="values")
    )
    assert float(losses) == pytest.approx(5.0)


def test_the_teacher_that_does_not_match_is_named():
    with pytest.raises(InputError, match=r"teacher 2 and student .* of the teacher 2 output \[2, 4\]"):
        taught_loss(torch.zeros(2, 3), [torch.zeros(2, 3), torch.zeros(2, 4)], None, Distillation())
    with pytest.raises(InputError, match="weights: got 3 of 2 teachers"):
        taught_loss(torch.zeros(2, 3), [torch.zeros(2, 3)] * 2, None, Distillation(weights=(1.0, 1.0, 1.0)))
