"""Preflight: one step of everything on one batch, in seconds. What would fail after an hour fails here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from trimtab.compress.plan import apply_plan, step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import TrimtabError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.graph.model import Graph
from trimtab.graph.module import module
from trimtab.graph.save import load
from trimtab.pipeline.deploy import example_inputs, write_point
from trimtab.pipeline.prepare import Prepared, prepare
from trimtab.pipeline.race import training
from trimtab.pipeline.space import STORED, Space, space_of
from trimtab.pipeline.survey import asks_for_size
from trimtab.run.device import MODEL
from trimtab.train.loop import steps_for

_T = TypeVar("_T")
_PER_CHOICE = 0.6
"""Share of a forward pass over the calibration data that other work adds to measuring one choice."""


def preflight(task: Task, target: Target, goal: Goal, *, seed: int = 0, progress: Progress = quiet) -> dict[str, Any]:
    """Do one step of everything and estimate the run.

    Returns:
        `checks`: for each step `{"step", "ok", "seconds", "error"}`; `ok`: whether all went well;
        `estimate`: seconds of each stage, bytes of memory and of disk; `notes`.

    Raises:
        TrimtabError: the task itself is wrong (capture, data, loss, goal).
    """
    checks: list[dict[str, Any]] = []
    prepared = _checked(checks, "prepare", lambda: prepare(task, target, goal, seed, None, progress))
    if prepared is None:
        raise checks[0]["raised"]
    stored = STORED if asks_for_size(goal) else ()
    space = _checked(
        checks, "find sites", lambda: space_of(prepared.graph, prepared.context, prepared.device.precisions, stored)
    )
    steps = 0
    if task.train is not None:
        trained = _checked(checks, "train", lambda: _training_steps(prepared))
        steps = trained or 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = _deployed(checks, prepared, space, folder)
    for k, check in enumerate(checks):
        progress("preflight", k + 1, len(checks))
        check.pop("raised", None)
    return {
        "checks": checks,
        "ok": all(c["ok"] for c in checks),
        "estimate": _estimate(prepared, space, goal, steps, size),
        "notes": list(prepared.notes),
        "goal": asdict(goal),
        "target": target.name,
    }


def _checked(checks: list[dict[str, Any]], step: str, work: Callable[[], _T]) -> _T | None:
    """Do one step and note how it went; None if it failed."""
    start = time.monotonic()
    row: dict[str, Any] = {"step": step, "ok": True, "error": None}
    result: _T | None = None
    try:
        result = work()
    except (TrimtabError, RuntimeError) as error:
        row.update(ok=False, error=f"{error}", raised=error)
    checks.append({**row, "seconds": round(time.monotonic() - start, 2)})
    return result


def _training_steps(prepared: Prepared) -> int:
    """Training steps in a minute."""
    return steps_for(60.0, prepared.graph, prepared.context, training(prepared.graph, prepared.context, 1).recipe())


def _deployed(checks: list[dict[str, Any]], prepared: Prepared, space: Space | None, folder: Path) -> int:
    """Cut, quantise, export, reload and time; gives the bytes of a point on disk."""
    context = prepared.context

    def cut() -> Graph:
        assert space is not None
        point = {axis.name: len(axis.choices) - 1 if axis.name.startswith("Prune:") else 0 for axis in space.axes}
        return apply_plan(prepared.graph, space.plan(point), context)

    graph = prepared.graph
    if space is not None and any(a.name.startswith("Prune:") for a in space.axes):
        graph = _checked(checks, "cut", cut) or graph
    plan = Plan()
    if context.target.precision == "int8":
        plan = Plan((step_of(Quantise()),))
        graph = _checked(checks, "quantise", lambda: apply_plan(graph, plan, context)) or graph
    original = _checked(checks, "export the original", lambda: write_point(prepared.graph, Plan(), folder / "a"))
    file = _checked(checks, "export", lambda: write_point(graph, plan, folder / "b"))
    if original is None or file is None:
        return 0
    _checked(checks, "reload", lambda: module(load(folder / "b")))
    inputs = example_inputs(prepared.graph, context.target.batch)
    # What is modelled may be too large for the device still: a cut is what is to make it fit.
    measured = prepared.device.source == "measured" and "fp32" in prepared.device.precisions
    reference = original if measured else file
    _checked(checks, "time", lambda: prepared.device.clock(reference, {"b": file}, context.target, inputs, 0.5))
    return sum(p.stat().st_size for p in (folder / "a").iterdir()) + (folder / "b" / MODEL).stat().st_size


def _estimate(prepared: Prepared, space: Space | None, goal: Goal, steps: int, size: int) -> dict[str, Any]:
    """Seconds, bytes of memory and of disk that the whole run will take."""
    start = time.monotonic()
    with torch.no_grad():
        for batch in prepared.context.calibrate[:1]:
            first = batch[0] if isinstance(batch, (tuple, list)) else batch
            prepared.graph(*([first] if isinstance(first, torch.Tensor) else list(first.values())))
    forward = time.monotonic() - start
    choices = sum(len(a.choices) - 1 for a in space.axes) if space else 0
    return {
        "seconds": {"sensitivity": round(choices * forward * 3 * (1 + _PER_CHOICE), 1), "whole run": 3600 * goal.hours},
        "steps_per_minute": steps,
        "choices": choices,
        "memory": psutil.Process().memory_info().rss * 2,
        "disk": size * 8 + 64_000_000,
    }
