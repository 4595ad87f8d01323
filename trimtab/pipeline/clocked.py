"""Clocked: what a device says of a task's network as it is, layer by layer, without a run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Progress, quiet
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.pipeline.deploy import example_inputs, write_point
from trimtab.pipeline.prepare import prepare
from trimtab.run.device import Clocked


def clocked(task: Task, target: Target, *, seed: int = 0, progress: Progress = quiet) -> Clocked:
    """What a task's network costs on a device: in floating point where it has that, else in plain 8-bit integers.

    Raises:
        InputError: the task or the target is wrong. NotRunnable: the device cannot run it.
    """
    prepared = prepare(task, target, Goal(max_drop=None), seed, None, progress)
    device, graph = prepared.device, prepared.graph
    if "fp32" not in device.precisions:
        graph = Quantise().apply(graph, prepared.context)
    with TemporaryDirectory() as folder:
        file = write_point(graph, Plan(), Path(folder))
        inputs = example_inputs(graph, target.batch)
        return device.clock(file, {"": file}, target, inputs)[""]
