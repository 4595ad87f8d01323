"""Prepare: the task as captured, checked and split. Nothing that searches sees what proves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab._version import VERSION
from trimtab.core.context import Context, Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.store import Store, digest
from trimtab.core.target import Target
from trimtab.core.task import Batch, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.devices import device_of
from trimtab.pipeline.table import seconds_of
from trimtab.run.device import Device
from trimtab.train.data import checked, fingerprint, in_memory, mixed, pick, size, split, take
from trimtab.train.evaluate import evaluate

COUNTED = ("size", "macs", "params", "peak_memory")
"""What can be minimised on every device, beside what the device tells."""
CALIBRATION = 512
"""Samples kept for ranges, statistics and sensitivities."""
READ = 16 * CALIBRATION
"""Samples that they are drawn from."""


@dataclass(frozen=True)
class Prepared:
    """A task ready to work on.

    Args:
        graph: the captured original, in evaluation mode.
        device: that the target names.
        context: with calibration and validation batches in memory, the original as teacher.
        test: batches to prove on, in memory; empty if the task has none.
        notes: what the user should know about capture and data.
        key: hash of the original, the data, the seed, and the libraries that compute.
    """

    graph: Graph
    device: Device
    context: Context
    test: tuple[Batch, ...]
    notes: tuple[str, ...]
    key: str


def prepare(
    task: Task, target: Target, goal: Goal, seed: int, store: Store | None = None, progress: Progress = quiet
) -> Prepared:
    """Capture the model, check the data against it, and split what must be split.

    Raises:
        CaptureError: the model cannot be captured.
        InputError: data, score or goal do not fit the model or each other.
    """
    goal.check()
    device = device_of(target)
    if goal.minimise not in (*device.minimises, *COUNTED):
        some = ", ".join((*device.minimises, *COUNTED))
        raise InputError("goal: minimise", got=goal.minimise, expected=f"one of {some} on {device.name}")
    if target.precision not in device.precisions:
        some = " or ".join(device.precisions)
        raise InputError("target: precision", where=target.name, got=target.precision, expected=some)
    deadline = time.monotonic() + 3600 * goal.hours
    progress("capture", 0, 1)
    graph = set_mode(capture(task.model, task.example), False)
    progress("capture", 1, 1)
    validate, test, notes = _splits(task, graph, seed)
    score = task.scored()
    if score is None and (goal.at_least.get("score") or goal.at_most.get("score")):
        raise InputError("goal: score", got="a task without a score", do="Give score= to the Task.")
    if task.train is not None:
        _first(task, graph)
    context = Context(
        task=task,
        target=target,
        support=device.support,
        times=seconds_of(device, target),
        teacher=graph,
        calibrate=_calibration(task, graph, validate, seed),
        validate=validate,
        score=score,
        seed=seed,
        deadline=deadline,
        store=store,
        progress=progress,
    )
    if score is not None and validate:
        evaluate(graph, take(validate, 64), score, split="validate")
    versions = (VERSION, torch.__version__)
    key = digest("task", weights(graph), fingerprint(task), [_shape(b) for b in validate], seed, versions)
    return Prepared(graph, device, context, test, (*graph.notes, *notes), key)


def settled(prepared: Prepared, what: str, measure: Callable[[], Any]) -> Any:
    """A decision made by the clock, stored before it is used, so that a resumed run decides the same."""
    store = prepared.context.store
    return store.once(digest(what, prepared.key), measure) if store else measure()


def weights(graph: Graph) -> str:
    """Hash of a network: its operators and every parameter and buffer."""
    return digest("network", [str(n.target) for n in graph.nodes()], dict(graph.tensors()))


def scored(prepared: Prepared, graph: Graph, on: str = "validate") -> Metric | None:
    """The task's score of a network; None where the task has no score or no such data."""
    batches = prepared.context.validate if on == "validate" else prepared.test
    score = prepared.context.score
    return evaluate(graph, batches, score, split=on) if score is not None and batches else None


def _splits(task: Task, graph: Graph, seed: int) -> tuple[tuple[Batch, ...], tuple[Batch, ...], tuple[str, ...]]:
    given = {n: d for n, d in (("validate", task.validate), ("test", task.test)) if d is not None}
    loaded = {name: in_memory(data, graph, name) for name, data in given.items()}
    if task.score is not None and any(_target(b) is None for part in loaded.values() for b in part):
        raise InputError("data: a batch has no target, and the score needs one", do="Yield (inputs, target).")
    if len(loaded) == 2:
        return loaded["validate"], loaded["test"], ()
    if len(loaded) == 1:
        ((name, whole),) = loaded.items()
        choosing, proving = split(whole, seed)
        half = sum(map(size, choosing)), sum(map(size, proving))
        parts = f"{half[0]} samples to choose on and {half[1]} to prove on"
        return choosing, proving, (f"`{name}` alone was given: split (seed {seed}) into {parts}.",)
    return (), (), ("There is no validation or test data: no score was measured.",)


def _target(batch: Batch) -> Any:
    if isinstance(batch, Mapping):
        return batch
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def _calibration(task: Task, graph: Graph, validate: tuple[Batch, ...], seed: int) -> tuple[Batch, ...]:
    for name, data in (("calibrate", task.calibrate), ("train", task.train)):
        if data is not None:
            return mixed(in_memory(data, graph, name, READ, seed), CALIBRATION, seed)
    return mixed(validate, CALIBRATION, seed) if validate else ()


def _first(task: Task, graph: Graph) -> None:
    """Fail now rather than after an hour: the first training batch and its loss."""
    (batch,) = in_memory(task.train or (), graph, "train", 2)[:1]
    inputs, target = checked(batch, graph, "train")
    if task.step is not None or task.loss is None:
        return
    if target is None:
        raise InputError("data: train: a batch has no target, and the loss needs one", do="Yield (inputs, target).")
    loss = task.loss(set_mode(graph.copy(), False)(*inputs), target)
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not bool(torch.isfinite(loss)):
        got = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) and loss.ndim else loss
        raise InputError("task: loss", got=got, expected="a finite scalar tensor", do="Return the mean over the batch.")


def _shape(batch: Batch) -> str:
    """A hash of a few samples of a batch, for the fingerprint of data that chooses."""
    tensors = list(_flat(pick(batch, range(min(size(batch), 2)))))
    return digest(size(batch), *tensors)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _flat(v)]
    return [t for v in value for t in _flat(v)] if isinstance(value, (tuple, list)) else []
