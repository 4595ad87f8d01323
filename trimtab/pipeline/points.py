"""Points: a plan carried out, exported, checked to run as planned, timed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compress.plan import apply_plan
from trimtab.core.metric import Metric, metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.graph.count import total
from trimtab.graph.model import Graph
from trimtab.pipeline.deploy import FILES, MODEL, Clocked, clock, example_inputs, size_of, write_point
from trimtab.pipeline.folder import finished
from trimtab.pipeline.prepare import Prepared
from trimtab.run.integer import require_integer
from trimtab.run.score import score_of


@dataclass(frozen=True)
class Point:
    """A network as files, with what was measured of it.

    Args:
        name: its folder's.
        plan: how it was made.
        file: its ONNX file.
        clocked: its latency.
        metrics: everything else, without a score of data to prove on.
        validate: its score on the data to choose on; None without.
        dropped: steps that did not pay, one sentence each.
    """

    name: str
    plan: Plan
    file: Path
    clocked: Clocked
    metrics: Mapping[str, Metric]
    validate: Metric | None
    dropped: tuple[str, ...] = ()

    def trial(self, stage: str, **more: Metric) -> Trial:
        """The point as a trial, with more metrics."""
        metrics = {**self.metrics, **self.clocked.metrics, **more}
        return Trial(
            self.name, self.plan, metrics, FILES, self.dropped, None, stage, self.clocked.runtime, self.clocked.others
        )


def point(prepared: Prepared, folder: Path, name: str, plan: Plan, baseline: Path | None = None) -> Point:
    """Carry out a plan, write its files, and measure them.

    Args:
        prepared: the task.
        folder: of the run; the point's own is `front/<name>` in it.
        name: of the point.
        plan: its steps; finished trainings come from the store.
        baseline: the original's file; None if this is it.

    Raises:
        NotInteger: a layer that was quantised would run in floating point.
        ExportError: the file does not agree with the network.
    """
    own = folder / "front" / name
    graph = apply_plan(prepared.graph, plan, prepared.context)
    if not finished(own, plan):
        write_point(graph, plan, own)
    file = own / MODEL
    target = prepared.context.target
    timed = clock(baseline or file, {name: file}, target, example_inputs(graph, target.batch))[name]
    if any(s["technique"] == "Quantise" for s in plan.steps):
        require_integer(file, timed.runtime)
    size = size_of(file)
    metrics = {"size": size, **_counted(graph, target.batch)}
    if baseline is not None:
        ratio = size_of(baseline).value / size.value
        metrics["size_ratio"] = metric("size_ratio", ratio, "measured", n=1, how="of bytes on disk")
    return Point(name, plan, file, timed, metrics, _validated(prepared, file, timed.runtime))


def _validated(prepared: Prepared, file: Path, runtime: str) -> Metric | None:
    context = prepared.context
    if context.score is None or not context.validate:
        return None
    return score_of(file, runtime, context.validate, context.score, "validate", threads=context.target.threads)


def _counted(graph: Graph, batch: int) -> dict[str, Metric]:
    costs = total(graph, batch)
    return {
        "macs": metric("macs", costs.macs / batch, "modelled", how="counted on the graph, for one sample"),
        "params": metric("params", costs.parameters, "modelled", how="counted on the graph"),
        "peak_memory": metric("peak_memory", costs.peak_memory, "modelled", how="activations by liveness"),
    }


def without(plan: Plan, technique: str) -> Plan:
    """A plan without the steps of one technique."""
    return Plan(tuple(s for s in plan.steps if s["technique"] != technique), plan.model)


def best(points: list[Point], minimise: str, allowed: Any) -> Point | None:
    """The point with the least of what is minimised among those that are allowed."""
    good = [p for p in points if allowed(p)]
    return min(good, key=lambda p: {**p.metrics, **p.clocked.metrics}[minimise].value, default=None)
