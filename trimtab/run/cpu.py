"""Cpu: this machine's processor, measured in one of its runtimes or in the fastest."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.errors import ExportError, InputError
from trimtab.core.metric import Metric, Source
from trimtab.core.target import Target
from trimtab.hardware.layer import Layer
from trimtab.hardware.machine import machine
from trimtab.run import runtime as runtime_of
from trimtab.run import runtimes
from trimtab.run.branches import branches
from trimtab.run.device import Clocked
from trimtab.run.fusable import INTEGER, SUPPORT, IntegerSupport
from trimtab.run.integer import require_integer
from trimtab.run.kernels import kernel_times
from trimtab.run.measure import Timing, latency, measure, ratio, throughput
from trimtab.run.runtime import Array, Session

_REORDER = re.compile(r"abcd|acdb|Reorder|Transpose", re.IGNORECASE)
"""Names of the layout changes that a runtime puts at the borders of a branch."""
_CHUNK = 64


@dataclass(frozen=True)
class Cpu:
    """This machine's processor.

    Args:
        runtime: the only one to use; None leaves the choice of those that read the ONNX file itself to the clock.
    """

    runtime: str | None = None
    name: str = "cpu"
    source: Source = "measured"
    precisions: tuple[str, ...] = ("fp32", "int8")
    minimises: tuple[str, ...] = ("latency",)

    @property
    def support(self) -> IntegerSupport:
        """What the runtime runs in integers; what all of them do, where there is a choice."""
        return SUPPORT.get(self.runtime or "", INTEGER)

    def available(self) -> str | None:
        """None, or why the runtime cannot be used."""
        return runtime_of(self.runtime).available()

    def version(self) -> str:
        """Of this machine and its libraries."""
        return f"{machine().key()} {runtime_of(self.runtime).version()}"

    def artifact(self, file: Path) -> tuple[Path, ...]:
        """The files that the runtime reads."""
        return runtime_of(self.runtime).artifact(file)

    def clock(
        self, baseline: Path, files: Mapping[str, Path], target: Target, inputs: Sequence[Array], seconds: float = 3.0
    ) -> dict[str, Clocked]:
        """Time files against the original in every runtime of the target, interleaved in this process.

        Each file is timed in a measurement of its own, with the original in the default runtime beside it.
        """
        _check_threads(target.threads)
        found = {}
        for name, path in files.items():
            with ExitStack() as stack:

                def load(file: Path, which: str | None, stack: ExitStack = stack) -> Session:
                    session = runtime_of(which).load(file, target.batch, target.threads)
                    stack.enter_context(closing(session))
                    return session

                sessions = {which: load(path, which) for which in self._candidates()}
                timed = measure({"": load(baseline, None), **sessions}, inputs, seconds, target.threads)
            metrics = {which: _metrics(timed[""], timed[which]) for which in sessions}
            best = min(metrics, key=lambda which: metrics[which]["latency"].value)
            found[name] = Clocked(best, metrics[best], {k: m for k, m in metrics.items() if k != best})
        return found

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        """Seconds of each layer, timed as branches of one model, each kernel by the runtime's own profiler.

        So conversions at the borders do not count.
        """
        found: dict[Layer, dict[str, float]] = {}
        for start in range(0, len(shapes), _CHUNK):
            found.update(self._timed(shapes[start : start + _CHUNK], precision, target))
        return found

    def check(self, file: Path, runtime: str) -> None:
        """NotInteger if a quantised layer would not run in integers there."""
        require_integer(file, runtime)

    def _candidates(self) -> tuple[str, ...]:
        return (runtime_of(self.runtime).name,) if self.runtime else tuple(r.name for r in runtimes())

    def _timed(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        runtime = runtime_of(self.runtime).name
        model, feeds = branches(shapes, precision, target.batch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layers.onnx"
            path.write_bytes(model.SerializeToString())
            times = kernel_times(path, runtime, feeds, threads=target.threads)
        found = {}
        for k, layer in enumerate(shapes):
            name = f"layer{k:03d}"
            own = [seconds for node, seconds in times.items() if name in node and not _REORDER.search(node)]
            if not own:
                raise ExportError(f"latency table: {runtime} names no kernel for a layer", where=layer)
            found[layer] = {"latency": max(own)}
        return found


def _metrics(baseline: Timing, timing: Timing) -> dict[str, Metric]:
    return {"latency": latency(timing), "latency_ratio": ratio(baseline, timing), "throughput": throughput(timing)}


def _check_threads(threads: int) -> None:
    usable = machine().usable
    if threads > usable:
        raise InputError("target: threads", got=threads, expected=f"at most {usable}: the cores this process may use")
