"""Settings of Sparsify: schedules, dynamic sparsity, and which go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from trimtab.compress.quantise import gptq
from trimtab.compress.settings import made
from trimtab.compress.sparsify.pattern import POOL, pattern_of
from trimtab.core.errors import InputError

if TYPE_CHECKING:
    from trimtab.compress.sparsify.technique import Sparsify

BY_INPUTS = ("wanda", "sparsegpt")
"""Methods that look at what each layer reads."""
_METHODS = ("magnitude", "movement", "wanda", "sparsegpt", "random")
_SCOPES = ("global", "layer", "erk")
_SETTLES = 0.75
"""Share of a training after which no zero comes or moves, so that the rest adapts to them."""
_CHOICES = 50
"""Times that zeros are chosen in a training, about."""
_MOVES = 20
"""Times that zeros move in a training, about."""


@dataclass(frozen=True)
class Schedule:
    """When zeros come: `oneshot` before the training, `cubic` during it.

    Args:
        kind: which.
        first: the step after which the first may come.
        last: the step after which all are there.
        every: steps from one choice to the next.
    """

    kind: Literal["oneshot", "cubic"] = "oneshot"
    first: int | None = None
    last: int | None = None
    every: int | None = None


@dataclass(frozen=True)
class Dynamic:
    """How zeros move.

    Args:
        kind: `set` or `rigl`.
        every: steps from one move to the next.
        fraction: of a layer's weights that go and grow at the first, above 0 to below 1.
        last: no move after this step.
    """

    kind: Literal["set", "rigl"]
    every: int | None = None
    fraction: float = 0.3
    last: int | None = None


def schedule_of(value: Mapping[str, Any] | None, method: str, steps: int) -> Schedule:
    """A schedule with its steps chosen for a training where they are not given.

    Raises:
        InputError: a setting is unknown, or a step lies outside the training.
    """
    given: Schedule = made(Schedule, value or {"kind": "cubic" if method == "movement" else "oneshot"})
    if given.kind == "oneshot" or not steps:
        return given
    first = given.first if given.first is not None else 0
    last = given.last if given.last is not None else max(round(_SETTLES * steps), first + 1)
    every = given.every if given.every is not None else max((last - first) // _CHOICES, 1)
    if not 0 <= first < last <= steps or every < 1:
        got = f"first {first}, last {last}, every {every}"
        raise InputError("Sparsify: schedule", got=got, expected=f"0 <= first < last <= {steps} steps, every >= 1")
    return replace(given, first=first, last=last, every=every)


def dynamic_of(value: str | Mapping[str, Any] | None, steps: int) -> Dynamic:
    """The same of how zeros move."""
    given: Dynamic = made(Dynamic, {"kind": value} if isinstance(value, str) else value or {})
    last = given.last if given.last is not None else round(_SETTLES * steps)
    every = given.every if given.every is not None else max(last // _MOVES, 1)
    if not 0 <= last < max(steps, 1) or every < 1 or not 0 < given.fraction < 1:
        got = f"every {every}, fraction {given.fraction:g}, last {last}"
        expected = f"every >= 1, fraction above 0 and below 1, last below {steps} steps"
        raise InputError("Sparsify: dynamic", got=got, expected=expected)
    return replace(given, every=every, last=last)


def check(settings: Sparsify) -> None:
    """InputError naming the setting that is wrong, or two that do not go together."""
    pattern = pattern_of(settings.pattern)
    for name, value, choices in (("method", settings.method, _METHODS), ("scope", settings.scope, (*_SCOPES, None))):
        if value not in choices:
            known = ", ".join(c for c in choices if c)
            raise InputError(f"Sparsify: {name}", got=repr(value), expected=f"one of {known}")
    if settings.samples < 1:
        raise InputError("Sparsify: samples", got=settings.samples, expected="1 or more")
    _check_amount(settings, pattern.kind == "n:m", 1 - pattern.first / pattern.second)
    kind = schedule_of(settings.schedule, settings.method, 0).kind
    if settings.dynamic is not None:
        dynamic_of(settings.dynamic, 10**9)
    for wrong, what, got, expected in (
        (settings.method == "movement" and kind != "cubic", "movement", f"schedule {kind}", "cubic"),
        (settings.method == "movement" and settings.train is None, "movement", "no training", "train="),
        (kind == "cubic" and settings.train is None, "schedule: cubic", "no training", "train="),
        (settings.dynamic is not None and settings.train is None, "dynamic", "no training", "train="),
        (settings.dynamic is not None and kind == "cubic", "dynamic", "schedule cubic", "oneshot"),
        (settings.dynamic is not None and pattern.kind != "free", "dynamic", f"pattern {settings.pattern}", "free"),
        (kind == "cubic" and settings.method not in ("magnitude", "movement"), "schedule: cubic",
         f"method {settings.method}", "magnitude or movement"),
        (settings.method in BY_INPUTS and settings.scope not in (None, "layer"), settings.method,
         f"scope {settings.scope}", "layer"),
        (settings.method in BY_INPUTS and POOL in (settings.keep or {}), f"keep: {settings.method}", repr(POOL),
         "a count for each weight by its name: rows are ranked within a weight"),
        (settings.permute and pattern.kind != "n:m", "permute", f"pattern {settings.pattern}", "N:M, such as 2:4"),
        (settings.method == "sparsegpt" and pattern.kind == "block", "sparsegpt", f"pattern {settings.pattern}",
         "free or N:M"),
        (settings.method == "sparsegpt" and pattern.kind == "n:m" and gptq.BLOCK % pattern.second != 0, "sparsegpt",
         f"pattern {settings.pattern}", f"an M that divides {gptq.BLOCK}"),
    ):  # fmt: skip
        if wrong:
            raise InputError(f"Sparsify: {what}", got=got, expected=expected)


def _check_amount(settings: Sparsify, grouped: bool, by_itself: float) -> None:
    """How many zeros: said once."""
    if grouped:
        if settings.ratio is not None and abs(settings.ratio - by_itself) > 1e-9:
            got = f"ratio {settings.ratio:g} and pattern {settings.pattern}"
            raise InputError("Sparsify: ratio", got=got, expected=f"none, or {by_itself:g}")
        if settings.keep is not None or settings.layers:
            got = "keep" if settings.keep is not None else "layers"
            raise InputError("Sparsify: pattern N:M", got=got, expected="the pattern alone")
        return
    if (settings.ratio is None) == (settings.keep is None):
        got = "neither" if settings.ratio is None else "both"
        raise InputError("Sparsify", got=f"{got} of ratio and keep", expected="ratio or keep")
    if settings.ratio is not None and not 0 <= settings.ratio < 1:
        raise InputError("Sparsify: ratio", got=settings.ratio, expected="a share from 0 to below 1")
