"""Prove: reopen what was made in a clean process, and measure it on data that nothing chose on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.core.metric import Metric
from trimtab.core.task import Batch
from trimtab.pipeline.deploy import computes, example_inputs, real_inputs, timed_on
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared
from trimtab.run.clean import clean_footprint, clean_outputs
from trimtab.run.device import Clocked
from trimtab.run.score import agreement
from trimtab.run.turns import depends_on_input
from trimtab.train.data import join
from trimtab.train.evaluate import scored

_TIMED = ("latency", "latency_ratio", "throughput", "cost")


@dataclass(frozen=True)
class Proof:
    """What a clean process found of a file.

    Args:
        metrics: score on the proving data, agreement with the original there.
        clocked: latency, measured once more, longer.
        outputs: on the proving data; None where there is none.
    """

    metrics: Mapping[str, Metric]
    clocked: Clocked
    outputs: Any


def prove(prepared: Prepared, baseline: Point, points: Sequence[Point], seconds: float = 8.0) -> dict[str, Proof]:
    """Prove points, the original first, whose outputs the others must agree with.

    Args:
        prepared: the task, with the data to prove on.
        baseline: the original.
        points: the others.
        seconds: to time each for.
    """
    inputs = example_inputs(prepared.graph, prepared.context.target.batch)
    turns = real_inputs(prepared.graph, prepared.context, prepared.test)
    split = timed_on(prepared.context, prepared.test)
    proofs: dict[str, Proof] = {}
    reference: Any = None
    everyone = [baseline, *(p for p in points if p.name != baseline.name)]
    for k, each in enumerate(everyone):
        prepared.context.progress("prove", k, len(everyone))
        clocked = each.clocked
        if each.integer or "fp32" in prepared.device.precisions:
            timed = prepared.device.clock(
                baseline.reference, {each.name: each.file}, prepared.context.target, inputs, seconds, turns
            )
            clocked = _on(split, timed[each.name]) if turns and depends_on_input(each.file) else timed[each.name]
        found, metrics = tested(prepared, each.file, clocked.runtime)
        reference = found if reference is None else reference
        if found is not None:
            metrics["agreement"] = agreement(reference, found)
        if prepared.context.target.device == "cpu":
            metrics |= clean_footprint(each.file, clocked.runtime, inputs, prepared.context.target.threads)
        proofs[each.name] = Proof(metrics, clocked, found)
    prepared.context.progress("prove", len(everyone), len(everyone))
    return proofs


def _on(split: str, clocked: Clocked) -> Clocked:
    """With the name of the data that a network whose work depends on its input was timed on."""
    timed = {k: m for k, m in clocked.metrics.items() if k in _TIMED and m.source == "measured"}
    told = {k: replace(m, how=f"{m.how}, of `{split}`") for k, m in timed.items()}
    return replace(clocked, metrics={**clocked.metrics, **told})


def tested(prepared: Prepared, file: Path, runtime: str) -> tuple[Any, dict[str, Metric]]:
    """Outputs of a file on the proving data, from a clean process, and their score."""
    context, test = prepared.context, prepared.test
    if not test:
        return None, {}
    outputs = clean_outputs(file, computes(runtime), test, context.target.threads)
    if context.score is None:
        return outputs, {}
    return outputs, {"score": scored(outputs, targets_of(test), context.score, "test")}


def targets_of(batches: Sequence[Batch]) -> Any:
    """The targets of all samples, as one."""
    return join([batch[1] for batch in batches])
