"""Probe: what this machine reaches at best, measured through the runtime and kept."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric
from trimtab.core.store import cache_folder, digest, read_json, write_json
from trimtab.hardware.machine import Machine, machine
from trimtab.hardware.roofline import Ceilings
from trimtab.profile.bandwidth import levels
from trimtab.profile.workloads import Precision, Workload, chain, convolution, product
from trimtab.run import runtime as runtime_of
from trimtab.run.kernels import kernels

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_SCHEMA = 1
"""Of what is measured; a change makes kept measurements unusable."""
_RUNS = 20
_LONG, _SHORT = 300, 100
"""Nodes of the two chains: the difference in time is that of so many nodes, and of nothing that a call costs once."""


def probe(runtime: str = "onnxruntime", threads: int = 1, fresh: bool = False) -> Ceilings:
    """The measured ceilings of this machine; kept in the cache folder and measured only once.

    Args:
        runtime: that computes, `onnxruntime` or `openvino`.
        threads: that it may use.
        fresh: measure again, whatever was kept.

    Raises:
        InputError: no such runtime, or more threads than this process may use.
        RuntimeMissing: it is not installed.
    """
    here = machine()
    if not 1 <= threads <= here.usable:
        raise InputError("probe: threads", got=threads, expected=f"1 to {here.usable}")
    path = kept_at(here, runtime, threads)
    if not fresh and path.exists():
        try:
            return Ceilings.of_json(read_json(path), path)
        except FileError:
            path.unlink()  # a damaged measurement is measured again
    found = measure(here, runtime, threads)
    write_json(path, found.json())
    return found


def kept_at(here: Machine, runtime: str, threads: int) -> Path:
    """The file of the ceilings of a machine with these libraries."""
    return cache_folder() / "probe" / f"{digest(_SCHEMA, here.key(), runtime, threads)}.json"


def measure(here: Machine, runtime: str, threads: int) -> Ceilings:
    """Measure now: some seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return Ceilings(
            runtime=runtime,
            threads=threads,
            overhead=_overhead(runtime, threads, folder),
            peak={precision: _peak(runtime, threads, precision, folder) for precision in PRECISIONS},
            levels=levels(here.caches, threads),
        )


def _peak(runtime: str, threads: int, precision: Precision, folder: Path) -> Metric:
    """The best rate of several shapes, each at the median of its runs, by the runtime's own profiler."""
    works = (product(512, precision), convolution(64, 28, precision), convolution(256, 14, precision))
    rates = [(work.macs / _slowest_kernel(work, runtime, threads, folder), work.name) for work in works]
    rate, name = max(rates)
    how = f"{name} in {precision}, {runtime}, threads: {threads}"
    return Metric(rate, "1/s", "measured", "up", n=_RUNS, how=how)


def _slowest_kernel(work: Workload, runtime: str, threads: int, folder: Path) -> float:
    """Seconds of the layer itself: what the runtime adds at its borders is faster."""
    timed = kernels(_written(work, folder), runtime, work.inputs, threads=threads, runs=_RUNS)
    return max(kernel.seconds for kernel in timed)


def _overhead(runtime: str, threads: int, folder: Path) -> Metric:
    """Seconds of one more node in a chain of nodes that compute next to nothing."""
    seconds = [_run_seconds(chain(nodes), runtime, threads, folder) for nodes in (_SHORT, _LONG)]
    each = max((seconds[1] - seconds[0]) / (_LONG - _SHORT), 1e-9)  # a clock that jumps must not give a negative cost
    how = f"chains of {_LONG} and {_SHORT} convolutions of one pixel, {runtime}, threads: {threads}"
    return Metric(each, "s", "measured", "down", n=_RUNS, how=how)


def _run_seconds(work: Workload, runtime: str, threads: int, folder: Path) -> float:
    session = runtime_of(runtime).load(_written(work, folder), threads=threads)
    try:
        once = session.prepared(list(work.inputs.values()))
        return median(_timed(once) for _ in range(2 * _RUNS))
    finally:
        session.close()


def _timed(once: Callable[[], object]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def _written(work: Workload, folder: Path) -> Path:
    path = folder / "work.onnx"
    path.write_bytes(work.model.SerializeToString())
    return path
