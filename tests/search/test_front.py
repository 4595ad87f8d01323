"""Pareto dominance by hand."""

from __future__ import annotations

from trimtab.core.metric import Metric, metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.search.front import beats, front


def trial(name: str, score: float, ratio: float, size: float, error: str | None = None) -> Trial:
    accuracy = Metric(score, "fraction", "measured", "up")
    metrics = {
        "score": accuracy,
        "latency_ratio": metric("latency_ratio", ratio, "measured"),
        "size": metric("size", size, "measured"),
    }
    return Trial(name, Plan(), metrics, error=error)


def test_front_keeps_what_nothing_beats() -> None:
    a, b, c, d = trial("a", 0.9, 1, 100), trial("b", 0.8, 2, 50), trial("c", 0.8, 1.5, 60), trial("d", 0.99, 9, 1, "x")
    assert [t.name for t in front([a, b, c, d])] == ["a", "b"]
    assert beats(b, c)
    assert not beats(a, b)
    assert not beats(b, a)


def test_equal_trials_do_not_beat_each_other() -> None:
    a, b = trial("a", 0.9, 1, 100), trial("b", 0.9, 1, 100)
    assert [t.name for t in front([a, b])] == ["a", "b"]


def test_smaller_size_is_better() -> None:
    assert beats(trial("a", 0.9, 1, 50), trial("b", 0.9, 1, 100))
