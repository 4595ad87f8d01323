"""Front: the trials that nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.core.metric import Metric
from trimtab.core.trial import Trial

OBJECTIVES = ("score", "latency_ratio", "size")
"""What a front trades off by default."""


def beats(a: Trial, b: Trial, objectives: Sequence[str] = OBJECTIVES) -> bool:
    """a is at least as good as b in every objective both have, and better in one (Pareto dominance)."""
    shared = [name for name in objectives if name in a.metrics and name in b.metrics]
    gains = [_gain(a.metrics[name], b.metrics[name]) for name in shared]
    return bool(gains) and min(gains) >= 0 and max(gains) > 0


def front(trials: Sequence[Trial], objectives: Sequence[str] = OBJECTIVES) -> tuple[Trial, ...]:
    """The succeeded trials that no other beats, in the order given."""
    good = [t for t in trials if t.error is None and t.metrics]
    return tuple(t for t in good if not any(beats(other, t, objectives) for other in good if other is not t))


def _gain(a: Metric, b: Metric) -> float:
    return a.value - b.value if a.direction == "up" else b.value - a.value
