"""Compress: techniques or a plan applied as they are, without search; the same files and report as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.compress.factorise.technique import Factorise
from trimtab.compress.order import check_order
from trimtab.compress.plan import plan_of, step_of, technique_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.technique import Technique
from trimtab.core.context import Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse
from trimtab.core.task import Task
from trimtab.graph.model import Graph
from trimtab.pipeline.fit import Result, Run, conclude
from trimtab.pipeline.folder import claim, release
from trimtab.pipeline.points import originals, point
from trimtab.pipeline.prepare import Prepared, prepare, settled, weights
from trimtab.pipeline.ranks import paying_layers


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
        chosen = plan
        if chosen is None:
            chosen = plan_of(steps, prepared.graph, prepared.context, lambda *at: _paying(prepared, steps, *at)[0])
    except InputError:
        release(folder)
        raise
    run = Run(prepared, goal, folder)
    known = originals(prepared, folder)
    made = point(prepared, folder, "compressed", chosen, known[0])
    told = [_paying(prepared, steps, i, each, prepared.graph)[1] for i, each in enumerate(steps)]
    made = replace(made, dropped=(*made.dropped, *(sentence for each in told for sentence in each)))
    run.stage("compress")
    return conclude(run, [*known, made], control=False, winner=made)


def _paying(
    prepared: Prepared, steps: Sequence[Technique], place: int, technique: Technique, graph: Graph
) -> tuple[Sequence[Technique], tuple[str, ...]]:
    """What is kept of a resolved technique, and a sentence for what is not: low rank only where it is faster.

    Found once: afterwards it is what the store of the run says.
    """
    if not isinstance(technique, Factorise):
        return (technique,), ()

    def measure() -> dict[str, Any]:
        integer = any(isinstance(each, Quantise) for each in steps)
        left, told = paying_layers(prepared, technique, graph, integer)
        return {"left": None if left is None else step_of(left), "told": told}

    found = settled(prepared, f"low rank {place}", measure)
    return ([technique_of(found["left"])] if found["left"] else ()), tuple(found["told"])
