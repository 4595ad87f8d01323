"""Compress: techniques or a plan applied as they are, without search; the same files and report as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trimtab.compress.order import check_order
from trimtab.compress.plan import plan_of, step_of
from trimtab.compress.technique import Technique
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.pipeline.fit import Result, Run, conclude
from trimtab.pipeline.folder import claim, release
from trimtab.pipeline.points import originals, point
from trimtab.pipeline.prepare import prepare, weights


def compress(
    task: Task,
    steps: Sequence[Technique],
    *,
    target: Target | str = "cpu",
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Result:
    """Apply techniques in order; ratios are resolved into indices, so that plan.json replays.

    Args:
        task: its model; data as far as the techniques need them.
        steps: such as `[Prune(ratio=0.5), Distil(steps=500), Quantise()]`.
        target: what it must run on.
        out: the folder; `runs/<task name>` by default.
        seed: of everything random.
        progress: called as work goes on.
    """
    return _made(task, steps, None, target, out, seed, progress)


def apply_to(
    plan: Plan,
    task: Task,
    *,
    target: Target | str = "cpu",
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Result:
    """Replay a plan on a task.

    Raises:
        InputError: the plan was made for another network, or does not fit this one.
    """
    return _made(task, (), plan, target, out, seed, progress)


def _made(
    task: Task,
    steps: Sequence[Technique],
    plan: Plan | None,
    target: Target | str,
    out: Path | str | None,
    seed: int,
    progress: Progress,
) -> Result:
    check_order(steps)
    where = parse(target) if isinstance(target, str) else target
    folder = Path(out) if out is not None else Path("runs") / task.name
    goal = Goal(max_drop=None)
    prepared = prepare(task, where, goal, seed, None, progress)
    if plan is not None and plan.model not in (None, weights(prepared.graph)):
        raise InputError(
            "apply: the plan was made for another network", got=plan.model, expected=weights(prepared.graph)
        )
    given = plan if plan is not None else Plan(tuple(map(step_of, steps)))
    identity = {"key": prepared.key, "target": where.name, "plan": given.json(), "seed": seed, "task": task.name}
    store = claim(folder, identity)
    prepared = replace(prepared, context=replace(prepared.context, store=store))
    try:
        # what trains while it is resolved leaves its training in the store, and does not train twice
        chosen = plan if plan is not None else plan_of(steps, prepared.graph, prepared.context)
    except InputError:
        release(folder)
        raise
    run = Run(prepared, goal, folder)
    known = originals(prepared, folder)
    made = point(prepared, folder, "compressed", chosen, known[0])
    run.stage("compress")
    return conclude(run, [*known, made], control=False, winner=made)
