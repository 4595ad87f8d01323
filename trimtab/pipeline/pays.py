"""Pays: whether a step of a plan makes the network faster on the target, by the clock."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from trimtab.compress.plan import apply_plan
from trimtab.core.errors import NotRunnable
from trimtab.core.goal import Goal
from trimtab.core.metric import metric, show
from trimtab.core.plan import Plan
from trimtab.pipeline.candidates import Candidate
from trimtab.pipeline.deploy import example_inputs, real_inputs, size_of, write_point
from trimtab.pipeline.points import Point, without
from trimtab.pipeline.prepare import Prepared
from trimtab.run.device import Clocked


def faster(a: Clocked, b: Clocked) -> bool:
    """Whether a is faster than b beyond the two intervals.

    By the ratio to the original that each was timed beside, where there is one: the machine's pace drifts between
    two occasions, and takes the original along.
    """
    name = "latency_ratio" if all("latency_ratio" in each.metrics for each in (a, b)) else "latency"
    mine, theirs = ((m.interval or (m.value, m.value)) for m in (a.metrics[name], b.metrics[name]))
    return mine[0] > theirs[1] if name == "latency_ratio" else mine[1] < theirs[0]


def reference_latency(original: Point) -> float:
    """Seconds of what latency ratios are against: the original in the default runtime, whichever runs it fastest."""
    metrics = original.clocked.metrics
    return metrics["latency"].value * (metrics["latency_ratio"].value if "latency_ratio" in metrics else 1.0)


def paying(
    prepared: Prepared, plan: Plan, original: Point, goal: Goal, techniques: tuple[str, ...]
) -> tuple[Plan, tuple[str, ...]]:
    """A plan without those of its steps that do not make it faster, and a sentence for each of them.

    A step stays where the goal's bounds on the file's size are missed by more without it.

    The networks are exported as the plan's cuts and quantisation leave them, without training, which
    does not change what they cost.

    Args:
        prepared: the task.
        plan: cuts and quantisation, no training.
        original: the original, timed beside.
        goal: whose bounds hold.
        techniques: the steps to doubt, in this order.
    """
    sentences: list[str] = []
    for technique in techniques:
        if not any(s["technique"] == technique for s in plan.steps):
            continue
        less = without(plan, technique)
        if not less.steps:
            continue
        (with_it, bytes_with), (without_it, bytes_without) = (sized(prepared, p, original, 1.5) for p in (plan, less))
        # the clock decides by its intervals alone: of two that are as fast, one is always a little faster
        needed = _missed(goal, bytes_with, original) < _missed(goal, bytes_without, original)
        if not needed and not faster(with_it, without_it):
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
    if "latency_ratio" in timed.metrics:
        found["latency"] = reference_latency(original) / timed.metrics["latency_ratio"].value
    found["size"] = size
    return {name: value / candidate.predicted[name] for name, value in found.items() if candidate.predicted[name] > 0}


def obstacle(prepared: Prepared, candidate: Candidate, original: Point) -> str | None:
    """Why a plan's network cannot run on the target, or None: asked where the original does not fit there."""
    try:
        sized(prepared, candidate.plan, replace(original, clocked=replace(original.clocked, lacks=None)), 0.5)
    except NotRunnable as error:
        return f"{type(error).__name__}: {error}"
    return None


def _missed(goal: Goal, size: float, original: Point) -> float:
    """By how much a file misses the goal's bounds on its size."""
    ratio = original.metrics["size"].value / size
    return goal.missed(
        {name: metric(name, value, "measured", n=1) for name, value in (("size", size), ("size_ratio", ratio))}, None
    )


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
        turns = real_inputs(graph, prepared.context)
        timed = prepared.device.clock(reference, {"": file}, target, inputs, seconds, turns)[""]
        return timed, size_of(prepared.device, file).value
