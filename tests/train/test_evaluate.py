"""Scores, their intervals, and scores that are wrong."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Score, Task, accuracy, mean_squared_error
from trimtab.graph.capture import capture
from trimtab.train.evaluate import evaluate, loss_of, outputs, paired_drop, scored

from .small import Net, images, setting, task


def fixed(right, n=400):
    """Outputs [n, 2] and targets [n] of which the first `right` are correct."""
    targets = torch.zeros(n, dtype=torch.int64)
    guess = torch.zeros(n, dtype=torch.int64)
    guess[right:] = 1
    return functional.one_hot(guess, 2).float(), targets


def test_the_score_over_the_whole_set_with_a_binomial_interval():
    metric = scored(*fixed(300), accuracy, "test")
    assert metric.value == 0.75
    assert (metric.unit, metric.source, metric.direction, metric.n, metric.split) == (
        "fraction",
        "measured",
        "up",
        400,
        "test",
    )
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert metric.interval == pytest.approx((0.75 - half, 0.75 + half), abs=0.008)
    assert scored(*fixed(300), accuracy, "test") == metric


def test_evaluate_equals_the_module_whatever_the_batches():
    made = task()
    graph = capture(made.model, made.example)
    x, y = images(n=30, seed=2)
    with torch.no_grad():
        expected = made.model(x)
    found, targets = outputs(graph, [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])], "test")
    torch.testing.assert_close(found, expected)
    assert torch.equal(targets, y)
    value = evaluate(graph, [(x[:7], y[:7]), (x[7:], y[7:])], accuracy, "test").value
    assert value == pytest.approx(float((expected.argmax(1) == y).float().mean()))


def test_a_drop_is_paired():
    a, targets = fixed(300)
    b, _ = fixed(296)
    metric = paired_drop(a, b, targets, accuracy)
    assert metric.value == pytest.approx(0.01)
    # four samples differ: the paired interval is far narrower than that of either score
    assert 0.0 <= metric.interval[0] < 0.01 < metric.interval[1] < 0.025
    assert paired_drop(b, a, targets, accuracy).value == pytest.approx(-0.01)
    assert paired_drop(a, a, targets, accuracy).interval == (0.0, 0.0)


def test_a_drop_of_an_error_is_its_rise():
    zeros, ones = torch.zeros(10, 1), torch.ones(10, 1)
    assert paired_drop(zeros, ones, zeros, mean_squared_error).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda o, t: (o.argmax(1) == t).float().mean(),
            r"got a tensor of shape \[\], expected a plain number. Return fl",
        ),
        (lambda o, t: None, "got NoneType, expected a plain number"),
        (lambda o, t: "0.9", "got str, expected a plain number"),
        (lambda o, t: math.nan, "got nan, expected a finite number"),
        (lambda o, t: 97.5, "got 97.5, expected a fraction from 0 to 1. Divide by 100"),
        (lambda o, t: -0.5, "got -0.5, expected a fraction"),
        (lambda o, t: o @ t, "it raised RuntimeError"),
        (lambda o: 1.0, "it raised TypeError"),
    ],
)
def test_a_score_that_is_wrong_is_said_in_one_line(function, message):
    with pytest.raises(InputError, match=f"score mine: .*{message}|score mine: {message}") as caught:
        scored(*fixed(300), Score("mine", function), "test")
    assert "\n" not in str(caught.value)


def test_a_score_in_its_own_unit_may_be_any_number():
    assert scored(*fixed(300), Score("points", lambda o, t: 97.5, unit="points"), "test").value == 97.5


def test_resamples_that_have_no_score_are_left_out():
    def needs_both(found, targets):
        if targets.unique().numel() < 2:
            raise ValueError("one class only")
        return 0.5

    targets = torch.tensor([0, 0, 0, 1])
    assert scored(torch.zeros(4, 2), targets, Score("auc", needs_both), "test").interval == (0.5, 0.5)
    once = Score("once", lambda o, t: 0.5 if t is targets else math.nan)
    assert scored(torch.zeros(4, 2), targets, once, "test").interval is None


def test_no_data_and_no_labels():
    graph, _ = setting()
    with pytest.raises(InputError, match="data: validate: got no batch"):
        evaluate(graph, [], accuracy, "validate")
    with pytest.raises(InputError, match="data: validate: no labels to score against"):
        evaluate(graph, [images()[0]], accuracy, "validate")


def test_outputs_by_name_reach_the_score_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.linear(x), "features": x}

    graph = capture(Named(), torch.randn(2, 3))
    x, y = torch.randn(12, 3), torch.zeros(12, dtype=torch.int64)
    score = Score("mine", lambda found, t: float((found.logits.argmax(1) == t).float().mean()))
    assert evaluate(graph, [(x[:5], y[:5]), (x[5:], y[5:])], score, "test").n == 12


def test_the_mean_loss_weighs_samples_not_batches():
    graph, context = setting()
    x, y = images(n=30, seed=2)
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    with torch.no_grad():
        expected = float(functional.cross_entropy(context.task.model(x), y))
    assert loss_of(graph, batches, context) == pytest.approx(expected, rel=1e-5)


def test_without_labels_the_loss_is_the_distance_to_the_teacher():
    graph, context = setting()
    assert loss_of(graph, [images()[0]], context) == pytest.approx(0.0, abs=1e-7)
    student = Net().eval()
    with torch.no_grad():
        p, q = context.task.model(images()[0]).log_softmax(1), student(images()[0]).log_softmax(1)
    expected = float((p.exp() * (p - q)).sum(1).mean())
    other = capture(student, context.task.example)
    assert loss_of(other, [images()[0]], context) == pytest.approx(expected, rel=1e-4)


def test_neither_labels_nor_teacher():
    made = Task(Net(), torch.randn(2, 3, 8, 8), loss=functional.cross_entropy)
    graph = capture(made.model, made.example)
    with pytest.raises(InputError, match="data: validate: a batch has no labels"):
        loss_of(graph, [torch.randn(4, 3, 8, 8)], Context(made))
