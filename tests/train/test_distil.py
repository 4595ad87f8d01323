"""Distillation loss against the formulas worked out by hand."""

import math

import pytest
import torch

from trimtab.core.errors import InputError
from trimtab.graph.model import Outputs
from trimtab.train.distil import distillation_loss
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
    with pytest.raises(InputError, match=r"got output \[2, 3\], expected output \[2, 4\]"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4), None, Distillation())
