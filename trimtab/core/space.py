"""Axis: what can be chosen at one site. Sampling, neighbours and encoding are pure functions of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import InputError


@dataclass(frozen=True)
class Axis:
    """One choice to make.

    Args:
        name: of the site, unique in its space.
        choices: what may be chosen, JSON-able values; in order where they have one (widths, bits).
        ordered: neighbours are the choices just beside, not all others.
    """

    name: str
    choices: tuple[Any, ...]
    ordered: bool = False

    def index(self, choice: Any) -> int:
        """The place of a choice among `choices`; InputError if it is none of them."""
        if choice not in self.choices:
            raise InputError("space", where=self.name, got=repr(choice), expected=f"one of {list(self.choices)}")
        return self.choices.index(choice)


def sample(axis: Axis, source: random.Random) -> Any:
    """One choice, each as likely as the others."""
    return axis.choices[source.randrange(len(axis.choices))]


def neighbours(axis: Axis, choice: Any) -> tuple[Any, ...]:
    """The choices one step away: those beside it if the axis is ordered, else all others."""
    at = axis.index(choice)
    return tuple(c for i, c in enumerate(axis.choices) if i != at and (not axis.ordered or abs(i - at) == 1))


def encode(axis: Axis, choice: Any) -> tuple[float, ...]:
    """Numbers for a predictor: one in [0, 1] for an ordered axis, else one-hot."""
    at, last = axis.index(choice), len(axis.choices) - 1
    if axis.ordered:
        return (at / last if last else 0.0,)
    return tuple(float(i == at) for i in range(last + 1))
