"""Pays: whether a step of a plan makes the network faster on the target, by the clock."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from trimtab.compress.plan import apply_plan
from trimtab.core.errors import NotRunnable
from trimtab.core.metric import show
from trimtab.core.plan import Plan
from trimtab.pipeline.candidates import Candidate
from trimtab.pipeline.deploy import example_inputs, size_of, write_point
from trimtab.pipeline.points import Point, without
from trimtab.pipeline.prepare import Prepared
from trimtab.run.device import Clocked


def faster(a: Clocked, b: Clocked) -> bool:
    """Whether a is faster than b beyond the two intervals."""
    mine, theirs = a.metrics["latency"], b.metrics["latency"]
    high = mine.interval[1] if mine.interval else mine.value
    low = theirs.interval[0] if theirs.interval else theirs.value
    return high < low


def paying(
    prepared: Prepared, plan: Plan, original: Point, techniques: tuple[str, ...]
) -> tuple[Plan, tuple[str, ...]]:
    """A plan without those of its steps that do not make it faster, and a sentence for each of them.

    The networks are exported as the plan's cuts and quantisation leave them, without training, which
    does not change what they cost.

    Args:
        prepared: the task.
        plan: cuts and quantisation, no training.
        original: the original, timed beside.
        techniques: the steps to doubt, in this order.
    """
    sentences: list[str] = []
    for technique in techniques:
        if not any(s["technique"] == technique for s in plan.steps):
            continue
        less = without(plan, technique)
        if not less.steps:
            continue
        with_it, without_it = (_timed(prepared, p, original) for p in (plan, less))
        if not faster(with_it, without_it):
            a, b = (show(c.metrics["latency"].value, "s") for c in (with_it, without_it))
            sentences.append(f"{technique} did not make the network faster ({a} with it, {b} without): dropped.")
            plan = less
    return plan, tuple(sentences)


def correction(prepared: Prepared, candidate: Candidate, original: Point) -> dict[str, float]:
    """How much more a plan costs on the target than the table said, by cost: found over predicted.

    Args:
        prepared: the task.
        candidate: its plan, without training, is built, exported and timed.
        original: the original, timed beside.
    """
    timed, size = sized(prepared, candidate.plan, original, 3.0)
    found = {name: timed.metrics[name].value for name in ("latency", "energy") if name in timed.metrics}
    found["size"] = size
    return {name: value / candidate.predicted[name] for name, value in found.items() if candidate.predicted[name] > 0}


def obstacle(prepared: Prepared, candidate: Candidate, original: Point) -> str | None:
    """Why a plan's network cannot run on the target, or None: asked where the original does not fit there."""
    try:
        sized(prepared, candidate.plan, replace(original, clocked=replace(original.clocked, lacks=None)), 0.5)
    except NotRunnable as error:
        return f"{type(error).__name__}: {error}"
    return None


def _timed(prepared: Prepared, plan: Plan, original: Point) -> Clocked:
    return sized(prepared, plan, original, 1.5)[0]


def sized(prepared: Prepared, plan: Plan, original: Point, seconds: float) -> tuple[Clocked, float]:
    """What a plan's network costs without training, and its bytes.

    Where the original does not fit into the device, the network may not either, and is modelled as its own reference.
    """
    graph = apply_plan(prepared.graph, plan, prepared.context)
    target = prepared.context.target
    with tempfile.TemporaryDirectory() as folder:
        file = write_point(graph, plan, Path(folder))
        inputs = example_inputs(graph, target.batch)
        reference = file if original.clocked.lacks else original.reference
        timed = prepared.device.clock(reference, {"": file}, target, inputs, seconds)[""]
        return timed, size_of(prepared.device, file).value
