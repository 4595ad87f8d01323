"""Deploy: a point as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trimtab.core.context import Context
from trimtab.core.metric import Metric, metric
from trimtab.core.plan import Plan
from trimtab.core.store import write_json
from trimtab.core.target import RUNTIMES
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.graph.save import save
from trimtab.run.device import MODEL, Device
from trimtab.run.export import export_onnx
from trimtab.run.runtime import Array, onnx_files
from trimtab.train.data import checked, mixed

TURNS = 512
"""Real inputs that take turns in timing networks whose work depends on them."""
FILES = (MODEL, "model.trim.json", "model.safetensors", "plan.json")
"""What is kept of each point."""


def write_point(graph: Graph, plan: Plan, folder: Path) -> Path:
    """Write a network as ONNX, as torch files without pickle, and its plan; gives the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, folder / MODEL)
    save(graph, folder)
    write_json(folder / "plan.json", plan.json())
    return folder / MODEL


def size_of(device: Device, file: Path) -> Metric:
    """Bytes on disk of the files that a device needs for a point.

    Args:
        device: that runs it.
        file: the point's ONNX file.
    """
    total = sum(path.stat().st_size for path in device.artifact(file))
    return metric("size", total, "measured", n=1, how="bytes on disk")


def onnx_size(file: Path) -> Metric:
    """Bytes on disk of an ONNX file with its external data."""
    return metric("size", sum(p.stat().st_size for p in onnx_files(file)), "measured", n=1, how="bytes on disk")


def computes(runtime: str) -> str:
    """The runtime that computes a point's outputs: its own, or the default one where a device is only modelled."""
    return runtime if runtime in RUNTIMES else RUNTIMES[0]


def example_inputs(graph: Graph, batch: int) -> list[Array]:
    """One batch of random inputs as arrays."""
    return [t.numpy() for t in graph.example(batch)]


def real_inputs(graph: Graph, context: Context, test: Sequence[Batch] = ()) -> list[list[Array]]:
    """Batches of the target's size, drawn at random, as arrays.

    Args:
        graph: what they are for.
        context: with the data to choose on; its calibration data where there is none.
        test: the data to prove on, instead of these: nothing may be proved on what chose the thresholds.
    """
    batches, batch = test or context.validate or context.calibrate, context.target.batch
    if not batches:
        return []
    found = []
    for each in mixed(batches, TURNS * batch, context.seed):
        inputs, _ = checked(each, graph, timed_on(context, test))
        parts = zip(*(torch.split(tensor, batch) for tensor in inputs), strict=True)
        found += [[tensor.numpy() for tensor in part] for part in parts if len(part[0]) == batch]
    return found


def timed_on(context: Context, test: Sequence[Batch] = ()) -> str:
    """The name of the data that `real_inputs` draws from."""
    return "test" if test else "validate" if context.validate else "calibrate"
