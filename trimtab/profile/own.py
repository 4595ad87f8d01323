"""Own: a network by the kernels of a runtime that compiles it from its graph, as that runtime's profiler names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trimtab.core.metric import Metric
from trimtab.core.target import Target
from trimtab.graph.model import Graph
from trimtab.graph.save import save
from trimtab.run import runtime
from trimtab.run.export import export_onnx
from trimtab.run.kernels import Kernel
from trimtab.run.measure import latency, measure
from trimtab.run.pinned import pinned

_SECONDS, _RUNS = 1.0, 60
_LEFT_OUT = "Its profile names no operators of the file, so that multiply-adds, bytes and ceilings are left out."
_NOTES: Mapping[str, str] = {
    "executorch": f"XNNPACK's profile cuts each kernel to whole microseconds: half of one is added. {_LEFT_OUT}",
    "inductor": f"Torch's profiler adds its own cost to each kernel. {_LEFT_OUT}",
}


@dataclass(frozen=True)
class OwnProfile:
    """The kernels of a network.

    Args:
        runtime: `executorch` or `inductor`.
        batch: samples.
        threads: that the runtime had.
        kernels: in the order of execution; `covers` holds the user's layer where it is known.
        latency: of the whole network, without a profiler.
        notes: what the figures leave out.
    """

    runtime: str
    batch: int
    threads: int
    kernels: tuple[Kernel, ...]
    latency: Metric
    notes: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """As `trimtab profile --json` prints it."""
        rows = [{"kernel": k.name, "by": k.kind, "layer": layer_of(k), "seconds": k.seconds} for k in self.kernels]
        settings = {"runtime": self.runtime, "batch": self.batch, "threads": self.threads}
        return {**settings, "latency": self.latency.json(), "kernels": rows, "notes": list(self.notes)}


def own_profile(graph: Graph, target: Target) -> OwnProfile:
    """Time the kernels of a network in a runtime that compiles it from its graph, and the whole of it.

    Args:
        graph: floating point or quantised, in evaluation mode.
        target: its runtime, `executorch` or `inductor`, batch and threads.

    Raises:
        RuntimeMissing: it is not installed. NotRunnable: it cannot be given this network.
    """
    chosen = runtime(target.runtime)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(graph, file)
        save(graph, file.parent)
        session = chosen.load(file, target.batch, target.threads)
        inputs = [t.numpy() for t in graph.example(target.batch)]
        try:
            whole = latency(measure({"": session}, inputs, _SECONDS, target.threads)[""])
        finally:
            session.close()
    from trimtab.run.own_kernels import own_kernels  # brings what compiles

    with pinned(target.threads):
        kernels = own_kernels(graph, chosen.name, target.batch, target.threads, _RUNS)
    return OwnProfile(chosen.name, target.batch, target.threads, kernels, whole, (_NOTES[chosen.name],))


def layer_of(kernel: Kernel) -> str:
    """The user's layer that a kernel computes; nothing where the runtime does not tell."""
    return kernel.covers[0] if kernel.covers else ""
