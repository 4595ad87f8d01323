"""Pays: whether a step of a plan makes the network faster on the target, by the clock."""

from __future__ import annotations

import tempfile
from pathlib import Path

from trimtab.compress.plan import apply_plan
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
    """How much more a plan costs on the target than the table said: measured over predicted, for latency and size.

    Args:
        prepared: the task.
        candidate: its plan, without training, is built, exported and timed.
        original: the original, timed beside.
    """
    graph = apply_plan(prepared.graph, candidate.plan, prepared.context)
    target = prepared.context.target
    with tempfile.TemporaryDirectory() as folder:
        file = write_point(graph, candidate.plan, Path(folder))
        inputs = example_inputs(graph, target.batch)
        timed = prepared.device.clock(original.reference, {"": file}, target, inputs, 3.0)[""]
        measured = {"latency": timed.metrics["latency"].value, "size": size_of(prepared.device, file).value}
    return {name: value / candidate.predicted[name] for name, value in measured.items()}


def _timed(prepared: Prepared, plan: Plan, original: Point) -> Clocked:
    graph = apply_plan(prepared.graph, plan, prepared.context)
    target = prepared.context.target
    with tempfile.TemporaryDirectory() as folder:
        file = write_point(graph, plan, Path(folder))
        inputs = example_inputs(graph, target.batch)
        return prepared.device.clock(original.reference, {"": file}, target, inputs, 1.5)[""]
