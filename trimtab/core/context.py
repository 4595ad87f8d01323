"""Context: what a technique may know beside the graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.store import Store
from trimtab.core.target import Target
from trimtab.core.task import Batch, Score, Task

Progress = Callable[[str, int, int], None]
"""`(what, done, total)`: called as work goes on."""


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@dataclass(frozen=True)
class Context:
    """What a technique may know beside the graph.

    Args:
        task: as the user brought it.
        target: what it must run on.
        support: what that runs in integers (a `run.fusable.IntegerSupport`); None for what every runtime here does.
        times: from shapes of layers (`hardware.layer.Layer`) to their seconds there; None where nothing tells.
        teacher: the captured original (a trimtab Graph), for distillation and agreement.
        teachers: further ones (Graphs) to distil from beside it.
        calibrate: a few batches of inputs, in memory; empty for a data-free task.
        validate: batches to choose on, in memory; empty if the task has none.
        score: of the task.
        seed: of everything random.
        device: to train and calibrate on.
        deadline: `time.monotonic()` by which the run must end.
        store: where finished steps are kept; None keeps nothing.
        progress: shows a bar.
    """

    task: Task
    target: Target = field(default_factory=Target)
    support: Any = None
    times: Callable[[Any], Mapping[Any, float]] | None = None
    teacher: Any = None
    teachers: tuple[Any, ...] = ()
    calibrate: tuple[Batch, ...] = ()
    validate: tuple[Batch, ...] = ()
    score: Score | None = None
    seed: int = 0
    device: str = "cpu"
    deadline: float = float("inf")
    store: Store | None = None
    progress: Progress = quiet

    @property
    def train(self) -> Iterable[Batch] | None:
        """Batches to train on."""
        return self.task.train

    def seconds_left(self) -> float:
        """Until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()
