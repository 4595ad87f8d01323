"""Points: a plan carried out, exported, checked to run as planned, timed and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.compress.plan import apply_plan, step_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.metric import Metric, metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.graph.count import total
from trimtab.graph.model import Graph
from trimtab.pipeline.coded import coded
from trimtab.pipeline.deploy import FILES, computes, example_inputs, onnx_size, real_inputs, size_of, write_point
from trimtab.pipeline.folder import finished
from trimtab.pipeline.prepare import Prepared
from trimtab.run.device import MODEL, Clocked
from trimtab.run.score import score_of
from trimtab.run.trim_file import CODED


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
        reference: the file that latency ratios count from, the original's, in int8 where the device has nothing else.
        dropped: steps that did not pay, and a file that could not be coded, one sentence each.
    """

    name: str
    plan: Plan
    file: Path
    clocked: Clocked
    metrics: Mapping[str, Metric]
    validate: Metric | None
    reference: Path
    dropped: tuple[str, ...] = ()

    def trial(self, stage: str, **more: Metric) -> Trial:
        """The point as a trial, with more metrics."""
        clocked = self.clocked
        metrics = {**self.metrics, **clocked.metrics, **more}
        kept = (*FILES, *sorted(p.name for p in self.file.parent.iterdir() if p.name not in FILES))
        told = (None, stage, clocked.runtime, clocked.others, clocked.layers)
        return Trial(self.name, self.plan, metrics, kept, self.dropped, *told)

    @property
    def integer(self) -> bool:
        """Whether it is quantised."""
        return is_integer(self.plan)


def is_integer(plan: Plan) -> bool:
    """Whether a plan quantises."""
    return any(s["technique"] == "Quantise" for s in plan.steps)


def point(prepared: Prepared, folder: Path, name: str, plan: Plan, original: Point | None = None) -> Point:
    """Carry out a plan, write its files, and measure them.

    Args:
        prepared: the task.
        folder: of the run; the point's own is `front/<name>` in it.
        name: of the point.
        plan: its steps; finished trainings come from the store.
        original: the original; None if this is it.

    Raises:
        NotInteger: a layer that was quantised would run in floating point.
        NotRunnable: the device cannot run it.
        ExportError: the file does not agree with the network.
    """
    own = folder / "front" / name
    graph = apply_plan(prepared.graph, plan, prepared.context)
    if not finished(own, plan):
        (own / CODED).unlink(missing_ok=True)  # of another plan
        write_point(graph, plan, own)
    file = own / MODEL
    device, target = prepared.device, prepared.context.target
    timed = Clocked(device.name, {})
    reference = original.reference if original is not None and original.clocked.metrics else file
    if is_integer(plan) or "fp32" in device.precisions:
        inputs, turns = example_inputs(graph, target.batch), real_inputs(graph, prepared.context)
        timed = device.clock(reference, {name: file}, target, inputs, turns=turns)[name]
    if is_integer(plan):
        device.check(file, timed.runtime)
    size = size_of(device, file) if timed.metrics else onnx_size(file)
    taken, told = coded(own)
    metrics = {"size": size, **taken, **_counted(graph, target.batch)}
    if original is not None:
        ratio = onnx_size(original.file).value / size.value
        metrics["size_ratio"] = metric("size_ratio", ratio, "measured", n=1, how="of bytes on disk")
    return Point(name, plan, file, timed, metrics, _validated(prepared, file, timed.runtime), reference, told)


def originals(prepared: Prepared, folder: Path) -> list[Point]:
    """The original; on a device without fp32 its int8 form after it, whose latency then stands for the original's."""
    original = point(prepared, folder, "original", Plan())
    if original.clocked.metrics:
        return [original]
    whole = point(prepared, folder, "int8", Plan((step_of(Quantise()),)), original)
    return [replace(original, clocked=whole.clocked, reference=whole.file), whole]


def _validated(prepared: Prepared, file: Path, runtime: str) -> Metric | None:
    context, threads = prepared.context, prepared.context.target.threads
    if context.score is None or not context.validate:
        return None
    return score_of(file, computes(runtime), context.validate, context.score, "validate", threads=threads)


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
