"""The race's arithmetic, by hand."""

from __future__ import annotations

import pytest

from trimtab.core.metric import Metric
from trimtab.core.plan import Plan
from trimtab.pipeline.candidates import Candidate
from trimtab.pipeline.race import EXPONENT, Runner, exponent, predict, structural, winner


def runner(name: str, drop: float, steps: int, latency: float) -> Runner:
    candidate = Candidate(name, {}, Plan(), {"latency": latency}, 0.0)
    return Runner(candidate, Plan(), steps, Metric(0.9 - drop, "fraction", "measured", "up"), drop)


def test_exponent_from_two_rungs() -> None:
    # a drop that halves while the steps grow fourfold: exponent 1/2; eightfold and halved: 1/3
    first = [runner("a", 0.04, 100, 1.0), runner("b", 0.04, 100, 2.0), runner("c", 0.2, 100, 3.0)]
    second = [runner("a", 0.02, 400, 1.0), runner("b", 0.02, 800, 2.0)]
    assert exponent(first, second) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert exponent(first, []) == EXPONENT


def test_prediction_and_gain() -> None:
    assert predict(runner("a", 0.04, 100, 1.0), 300, 0.5) == pytest.approx(0.02)
    assert predict(runner("a", -0.01, 100, 1.0), 300, 0.5) == -0.01


def test_the_cheapest_that_is_allowed_wins_else_the_nearest() -> None:
    entries = [runner("slow", 0.0, 1, 3.0), runner("fast", 0.0, 1, 1.0), runner("middle", 0.0, 1, 2.0)]
    assert winner(entries, [0.001, 0.02, 0.006], 0.01, "latency").candidate.name == "middle"
    assert winner(entries, [0.03, 0.05, 0.04], 0.01, "latency").candidate.name == "slow"
    assert winner(entries, [0.03, 0.05, 0.04], None, "latency").candidate.name == "fast"


def test_structure_leaves_training_and_quantisation_out() -> None:
    plan = Plan(tuple({"technique": name} for name in ("RemoveBlocks", "Prune", "Distil", "Quantise")))
    assert [s["technique"] for s in structural(plan).steps] == ["RemoveBlocks", "Prune"]
