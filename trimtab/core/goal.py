"""Goal: what must hold of the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtab.core.errors import InputError
from trimtab.core.metric import METRIC_NAMES, Metric


@dataclass(frozen=True)
class Goal:
    """What must hold, and what to make best among all that holds.

    Args:
        minimise: the metric to make best (`latency`, `size`, `energy`, `macs`, ...).
        max_drop: how much score may be lost against the better of the original and its control,
            in the score's unit, in its bad direction; None for no bound.
        at_most: upper bounds by metric name, in base units (s, byte, J).
        at_least: lower bounds by metric name; `score` and `latency_ratio` among them.
        hours: wall-clock time for the whole run, the control's training apart.
    """

    minimise: str = "latency"
    max_drop: float | None = 0.01
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    hours: float = 0.5

    def check(self) -> Goal:
        """The goal itself, or InputError where it contradicts itself."""
        for name in (self.minimise, *self.at_most, *self.at_least):
            if name not in METRIC_NAMES:
                raise InputError("goal", where=name, expected=f"a metric: {', '.join(METRIC_NAMES)}")
        for name in set(self.at_most) & set(self.at_least):
            if self.at_most[name] < self.at_least[name]:
                raise InputError(
                    f"goal: {name} contradicts itself",
                    got=f"at most {self.at_most[name]:g} and at least {self.at_least[name]:g}",
                    do="Drop one of the two.",
                )
        for name, bound in self.at_most.items():
            if bound <= 0:
                raise InputError(f"goal: at most {name}", got=bound, expected="a number above 0")
        if self.max_drop is not None and self.max_drop < 0:
            raise InputError("goal: max_drop", got=self.max_drop, expected="0 or more, in the score's unit")
        if not self.hours > 0:
            raise InputError("goal: hours", got=self.hours, expected="more than 0")
        return self

    def binding(self, metrics: Mapping[str, Metric], reference: float | None) -> str | None:
        """The constraint that `metrics` misses by most (by its logarithm), or None if all hold.

        Args:
            metrics: of one point.
            reference: the score that `max_drop` counts from; None where the task has no score.
        """
        missed = self._missed(metrics, reference)
        return max(missed, key=lambda name: missed[name]) if missed else None

    def missed(self, metrics: Mapping[str, Metric], reference: float | None) -> float:
        """By how much the goal is missed, the sum of the logarithms over its constraints; 0 if it is met.

        Twice the allowed drop is as far as half the wanted speed.
        """
        return sum(self._missed(metrics, reference).values())

    def _missed(self, metrics: Mapping[str, Metric], reference: float | None) -> dict[str, float]:
        missed: dict[str, float] = {}
        score = metrics.get("score")
        if self.max_drop is not None and score is not None and reference is not None:
            drop = reference - score.value if score.direction == "up" else score.value - reference
            if drop > self.max_drop + 1e-9:  # 0.91 - 0.90 is a little more than 0.01
                missed["max_drop"] = math.log1p((drop - self.max_drop) / max(self.max_drop, 1e-3))
        for name, bound in self.at_most.items():
            if name in metrics and metrics[name].value > bound:
                missed[name] = math.log1p((metrics[name].value - bound) / max(abs(bound), 1e-30))
        for name, bound in self.at_least.items():
            if name in metrics and metrics[name].value < bound:
                value = metrics[name].value
                missed[name] = math.log1p((bound - value) / max(abs(value), 1e-9 * abs(bound), 1e-30))
        return missed
