"""Options: what several commands share, and a goal from what was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import METRIC_NAMES, quantity, unit_of

TaskName = Annotated[
    str,
    typer.Argument(metavar="TASK", help="file.py, file.py:name, package.module:name, or digits.", show_default=False),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.", show_default=False)]
TargetName = Annotated[
    str, typer.Option("--target", metavar="TARGET", help="What it must run on; `trimtab targets` lists them.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run's folder.", show_default="runs/<the task's name>")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of everything random.")]
Address = Annotated[
    str | None,
    typer.Option("--target", metavar="URL", help="The run's target, where it is an address.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")]


@dataclass(frozen=True)
class Wishes:
    """The options of a goal, as they were written.

    Args:
        minimise: name of a metric.
        max_drop: `0.01`, `1%`, `none`, or None where it was not given.
        at_most: each `NAME=QUANTITY`.
        at_least: each `NAME=QUANTITY`.
        speedup: `4` or `4x`, or None.
        latency: `2ms`, or None.
        size: `1MB`, or None.
        hours: of wall-clock time.
    """

    minimise: str = "latency"
    max_drop: str | None = None
    at_most: Sequence[str] = field(default_factory=tuple)
    at_least: Sequence[str] = field(default_factory=tuple)
    speedup: str | None = None
    latency: str | None = None
    size: str | None = None
    hours: float = 0.5

    def goal(self) -> Goal:
        """The goal in base units, checked.

        Raises:
            InputError: a quantity has no unit where one is needed, a bound is given twice, or bounds contradict
                each other.
        """
        short = [
            f"{name}={text}" for name, text in (("latency", self.latency), ("size", self.size)) if text is not None
        ]
        at_most = bounds("--at-most", [*self.at_most, *short])
        at_least = bounds(
            "--at-least", [*self.at_least, *([f"latency_ratio={self.speedup}"] if self.speedup is not None else [])]
        )
        return Goal(self.minimise, self._drop({*at_most, *at_least}), at_most, at_least, self.hours).check()

    def _drop(self, bounded: set[str]) -> float | None:
        """What was asked; 0.01 where nothing was asked of the score at all."""
        if self.max_drop is None:
            return None if "score" in bounded else Goal.max_drop
        if self.max_drop.strip().lower() == "none":
            return None
        return amount("--max-drop", self.max_drop, "fraction")


def bounds(option: str, texts: Sequence[str]) -> dict[str, float]:
    """Read `NAME=QUANTITY` texts into base units by metric name."""
    found: dict[str, float] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or name not in METRIC_NAMES:
            expected = f"NAME=QUANTITY with a NAME of {', '.join(METRIC_NAMES)}"
            raise InputError(f"option {option}", got=repr(text), expected=expected)
        if name in found:
            raise InputError(f"option {option}: {name} is given twice", do="Drop one of the two.")
        found[name] = amount(f"{option} {name}", value, "fraction" if name == "score" else unit_of(name)[0])
    return found


def amount(option: str, text: str, unit: str) -> float:
    """Read a quantity of an option; the error names the option."""
    try:
        return quantity(text, unit)
    except InputError as error:
        raise InputError(f"option {option}", got=error.got, expected=error.expected) from error
