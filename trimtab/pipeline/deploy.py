"""Deploy: a point as files, and the clock on those files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.core.metric import Metric, metric
from trimtab.core.plan import Plan
from trimtab.core.store import write_json
from trimtab.core.target import Target
from trimtab.graph.model import Graph
from trimtab.graph.save import save
from trimtab.run import Session, runtime, runtimes
from trimtab.run.export import export_onnx
from trimtab.run.measure import Timing, latency, measure, ratio, throughput

MODEL = "model.onnx"
FILES = (MODEL, "model.trim.json", "model.safetensors", "plan.json")
"""What is kept of each point."""


@dataclass(frozen=True)
class Clocked:
    """What the clock said of one file.

    Args:
        runtime: the one that ran it fastest.
        metrics: latency, latency_ratio and throughput there.
        others: the same in the other runtimes, by runtime.
    """

    runtime: str
    metrics: Mapping[str, Metric]
    others: Mapping[str, Mapping[str, Metric]]


def write_point(graph: Graph, plan: Plan, folder: Path) -> Path:
    """Write a network as ONNX, as torch files without pickle, and its plan; gives the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, folder / MODEL)
    save(graph, folder)
    write_json(folder / "plan.json", plan.json())
    return folder / MODEL


def size_of(path: Path) -> Metric:
    """Bytes of an artifact on disk, its external data included."""
    beside = path.with_name(f"{path.name}.data")
    total = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
    return metric("size", total, "measured", n=1, how="bytes on disk")


def candidates_of(target: Target) -> tuple[str, ...]:
    """Names of the runtimes that a target leaves to the clock."""
    return (runtime(target.runtime).name,) if target.runtime else tuple(r.name for r in runtimes())


def clock(
    baseline: Path, files: Mapping[str, Path], target: Target, inputs: Sequence[np.ndarray], seconds: float = 3.0
) -> dict[str, Clocked]:
    """Time files against the original in every runtime of the target, interleaved in this process.

    Each file is timed in a measurement of its own, with the original in the default runtime beside it.

    Args:
        baseline: the original's fp32 file.
        files: what to time, by name.
        target: batch, threads, and the runtime or None for the fastest.
        inputs: one batch, in the order of the model's inputs.
        seconds: for each file.
    """
    found = {}
    for name, path in files.items():
        with ExitStack() as stack:

            def load(file: Path, which: str | None, stack: ExitStack = stack) -> Session:
                session = runtime(which).load(file, target.batch, target.threads)
                stack.enter_context(closing(session))
                return session

            sessions = {which: load(path, which) for which in candidates_of(target)}
            timed = measure({"": load(baseline, None), **sessions}, inputs, seconds, target.threads)
        metrics = {which: _metrics(timed[""], timed[which]) for which in sessions}
        best = min(metrics, key=lambda which: metrics[which]["latency"].value)
        found[name] = Clocked(best, metrics[best], {k: m for k, m in metrics.items() if k != best})
    return found


def _metrics(baseline: Timing, timing: Timing) -> dict[str, Metric]:
    return {"latency": latency(timing), "latency_ratio": ratio(baseline, timing), "throughput": throughput(timing)}


def example_inputs(graph: Graph, batch: int) -> list[np.ndarray]:
    """One batch of random inputs as arrays."""
    return [t.numpy() for t in graph.example(batch)]
