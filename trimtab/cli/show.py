"""Show: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""

_SHOWN = 4
"""Bars at a time: those that moved last."""


class Bars:
    """A progress function: bars with the time left on a terminal, plain lines elsewhere; always on stderr."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._known: dict[str, Any] = {}
        self._recent: list[str] = []
        self._said = -_EVERY

    def __enter__(self) -> Bars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            self._line(what, done, total)
            return
        if done == 0 and what in self._known:  # the same work again: its time left starts anew
            self._bars.reset(self._known[what], total=total)
        if what not in self._known:
            self._known[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._known[what], completed=done, total=total, visible=True)
        self._recent = [what, *(w for w in self._recent if w != what)]
        for old in self._recent[_SHOWN:]:
            self._bars.update(self._known[old], visible=False)
        del self._recent[_SHOWN:]

    def _line(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= _EVERY:
            self._said = now
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Print a table to stdout; `right` are the columns that are aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        made.add_column(Text(name), justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    printed(made)


def printed(made: Table) -> None:
    """Print a table to stdout, as wide as the terminal is."""
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(made)


def lines(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair on a line."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        print(f"{name:<{width}}  {value}")


def as_json(data: Any) -> None:
    """Print JSON to stdout."""
    print(json.dumps(data, indent=1, allow_nan=False, default=str))


def note(text: str) -> None:
    """Say something beside the result, on stderr."""
    print(f"trimtab: {text}", file=sys.stderr)
