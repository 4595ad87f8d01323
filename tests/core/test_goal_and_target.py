"""Goals that contradict themselves, and what binds; targets as text."""

from __future__ import annotations

import math

import pytest

from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric, metric
from trimtab.core.target import Target, parse


def point(score: float, ratio: float, size: float) -> dict[str, Metric]:
    return {
        "score": Metric(score, "fraction", "measured", "up"),
        "latency_ratio": metric("latency_ratio", ratio, "measured"),
        "size": metric("size", size, "measured"),
    }


def test_what_binds_is_what_is_missed_by_most() -> None:
    goal = Goal(max_drop=0.01, at_most={"size": 100.0}, at_least={"latency_ratio": 4.0}).check()
    assert goal.binding(point(0.90, 4.0, 100.0), 0.91) is None
    assert goal.binding(point(0.90, 3.9, 100.0), 0.91) == "latency_ratio"
    assert goal.binding(point(0.90, 3.9, 300.0), 0.91) == "size"
    assert goal.binding(point(0.80, 3.9, 300.0), 0.91) == "max_drop"
    assert goal.missed(point(0.90, 4.0, 100.0), 0.91) == 0
    assert goal.missed(point(0.90, 2.0, 150.0), 0.91) == pytest.approx(math.log(2.0) + math.log(1.5))


def test_a_score_that_is_better_low_drops_upwards() -> None:
    perplexity = {"score": Metric(21.0, "1", "measured", "down")}
    assert Goal(max_drop=0.5).binding(perplexity, 20.0) == "max_drop"
    assert Goal(max_drop=1.5).binding(perplexity, 20.0) is None


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (Goal(at_most={"latency": 0.001}, at_least={"latency": 0.002}), "contradicts itself"),
        (Goal(minimise="speed"), "expected a metric"),
        (Goal(max_drop=-0.1), "max_drop"),
        (Goal(at_most={"size": 0.0}), "above 0"),
        (Goal(hours=0), "hours"),
    ],
)
def test_wrong_goals(goal: Goal, says: str) -> None:
    with pytest.raises(InputError, match=says):
        goal.check()


def test_targets_read_back_what_they_are_called() -> None:
    for text in (
        "cpu",
        "onnxruntime",
        "openvino:batch=8,threads=2",
        "cpu:precision=fp32",
        "http://board:7070:batch=2",
        "./board.toml",
        "ethos-u55-128",
    ):
        assert parse(text).name == text
    assert parse("cpu:threads=2") == Target(threads=2)


@pytest.mark.parametrize("text", ["a toaster", "cpu:batch=0", "cpu:threads=x", "cpu:clock=3", "cpu:precision=int3"])
def test_unknown_targets(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse(text)
