"""Batch: throughput against latency over batch sizes and threads, and the batch where the curve bends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric
from trimtab.core.target import Target
from trimtab.hardware.machine import machine
from trimtab.run import runtime as runtime_of
from trimtab.run import runtimes
from trimtab.run.measure import ROUNDS, Timing, cost, latency, measure, throughput
from trimtab.run.runtime import Array, Session, first_line

LARGEST = 64
_SECONDS, _LONGEST = 0.5, 10.0
"""To measure one batch for, and the longest that its fewest rounds may take: larger batches are left out."""
_CALLS = 3 * ROUNDS
"""Inferences of the fewest rounds: each warms up once and times two."""
_FLAT = 1.05
"""A throughput that grows by no more is flat."""


@dataclass(frozen=True)
class BatchPoint:
    """What one batch costs.

    Args:
        batch: samples in one inference.
        threads: that it may use.
        runtime: the fastest of those asked for.
        metrics: `latency` of the whole batch, `throughput`, `cost` of one sample.
    """

    batch: int
    threads: int
    runtime: str
    metrics: Mapping[str, Metric]

    def __getitem__(self, name: str) -> float:
        """The value of a metric."""
        return self.metrics[name].value

    def json(self) -> dict[str, Any]:
        """As report.json has it."""
        told = {name: m.json() for name, m in self.metrics.items()}
        return {"batch": self.batch, "threads": self.threads, "runtime": self.runtime, "metrics": told}


def sweep(
    path: Path,
    target: Target | None = None,
    threads: Sequence[int] | None = None,
    largest: int = LARGEST,
    seconds: float = _SECONDS,
    most: float = math.inf,
) -> tuple[BatchPoint, ...]:
    """Measure batches of 1, 2, 4, ... samples, each in every runtime of the target, interleaved.

    A number of threads ends at the first batch beyond `most`, or whose measurement would take too long.

    Args:
        path: of an ONNX file with a free batch.
        target: its runtime, or the fastest for each batch; its threads are the default.
        threads: numbers of threads to try.
        largest: the last batch.
        seconds: to measure each for.
        most: latency in seconds from which on larger batches are of no interest.

    Raises:
        InputError: the file's batch is fixed, or there are fewer threads. FileError: it does not run.
    """
    wanted = target or Target()
    usable = machine().usable
    found: list[BatchPoint] = []
    for count in threads or (wanted.threads,):
        if not 1 <= count <= usable:
            raise InputError("batches: threads", got=count, expected=f"1 to {usable}")
        found += _of_threads(path, wanted, count, _powers(largest), seconds, most)
    return tuple(found)


def knee(points: Sequence[BatchPoint]) -> BatchPoint:
    """The batch from which on throughput is bought with ever more latency: Kneedle on logarithmic latency.

        x = ln(L / L_first) / ln(L_last / L_first),   y = (T - T_first) / (T_last - T_first),   argmax y - x

    From the smallest batch to that of the best throughput, of points that nothing beats in both. Where throughput grows
    by no more than 5 % it is the smallest batch; where the curve does not bend, the one of the best throughput.

    Args:
        points: of one number of threads.

    Source: Satopaa et al. 2011, Finding a "Kneedle" in a Haystack, section III; x is logarithmic here because batches
    double, and there is no smoothing.
    """
    curve = sorted(pareto(points), key=lambda p: p["latency"])
    first, last = curve[0], curve[-1]
    if last["throughput"] <= _FLAT * first["throughput"]:
        return first
    width, height = math.log(last["latency"] / first["latency"]), last["throughput"] - first["throughput"]

    def above(point: BatchPoint) -> float:
        x = math.log(point["latency"] / first["latency"]) / width
        return (point["throughput"] - first["throughput"]) / height - x

    return max(reversed(curve), key=above)


def pareto(points: Sequence[BatchPoint]) -> tuple[BatchPoint, ...]:
    """The points that no other one beats in both latency and throughput."""
    return tuple(p for p in points if not any(_beats(q, p) for q in points))


def cheapest(points: Sequence[BatchPoint], most: float = math.inf) -> BatchPoint | None:
    """The point of the least cost whose latency is at most so many seconds; None if there is none."""
    allowed = [p for p in points if p["latency"] <= most]
    return min(allowed, key=lambda p: p["cost"], default=None)


def _beats(a: BatchPoint, b: BatchPoint) -> bool:
    better = a["latency"] <= b["latency"] and a["throughput"] >= b["throughput"]
    return better and (a["latency"] < b["latency"] or a["throughput"] > b["throughput"])


def _powers(largest: int) -> Iterator[int]:
    if largest < 1:
        raise InputError("batches: the largest", got=largest, expected="1 or more")
    batch = 1
    while batch <= largest:
        yield batch
        batch *= 2


def _of_threads(
    path: Path, target: Target, threads: int, batches: Iterator[int], seconds: float, most: float
) -> Iterator[BatchPoint]:
    for batch in batches:
        timed = _timed(path, target, batch, threads, seconds)
        name = min(timed, key=lambda which: timed[which].median_s)
        timing = timed[name]
        yield BatchPoint(batch, threads, name, {f.__name__: f(timing) for f in (latency, throughput, cost)})
        if timing.median_s > most or 2 * timing.median_s * _CALLS * len(timed) > _LONGEST:
            return


def _timed(path: Path, target: Target, batch: int, threads: int, seconds: float) -> dict[str, Timing]:
    names = (target.runtime,) if target.runtime else tuple(r.name for r in runtimes())
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name in names:
            sessions[name] = stack.enter_context(closing(runtime_of(name).load(path, batch, threads)))
        inputs = _inputs(next(iter(sessions.values())), batch, path)
        try:
            return measure(sessions, inputs, seconds, threads)
        except InputError:
            raise
        except Exception as error:  # a runtime raises errors of its own, without a common base
            raise FileError("batches: the network does not run", where=path, got=first_line(error)) from error


def _inputs(session: Session, batch: int, path: Path) -> list[Array]:
    """Normal floats, zero integers, in the session's shapes."""
    rng = np.random.default_rng(0)
    made: list[Array] = []
    for port in session.inputs:
        shape = tuple(batch if i == 0 and n is None else n for i, n in enumerate(port.shape))
        if shape[:1] != (batch,):
            raise InputError("batches", where=path, got=f"input {port.name} of {list(shape)}", expected="a free batch")
        if any(n is None for n in shape):
            raise InputError("batches", where=path, got=f"input {port.name} with other free sizes than the batch")
        sizes = tuple(int(n) for n in shape if n is not None)
        floating = np.issubdtype(port.dtype, np.floating)
        made.append(rng.standard_normal(sizes).astype(port.dtype) if floating else np.zeros(sizes, port.dtype))
    return made
