"""Measure: time several sessions against each other in one process, interleaved, with intervals."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.core.errors import InputError
from trimtab.core.metric import Metric, metric
from trimtab.run.pinned import pinned
from trimtab.run.runtime import Array, Session

ROUNDS = 30
"""Rounds that a measurement has at least, whatever its time budget."""
BOUND = 0.05
"""A median is reliable if its 95 % interval is narrower than this, relative to it."""
SPREAD = 0.3
"""And if its rounds' interquartile range is narrower than this: a clock that jumps gives a narrow interval too."""
_RESAMPLES = 1000
_BURST_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """How long one inference takes.

    Args:
        median_s: median over rounds, s; the mean over them where real inputs took turns.
        interval: its bootstrap 95 % interval, s.
        spread: interquartile range over median; of repeats of the same input where inputs took turns.
        n: rounds.
        burst: inferences timed in each round.
        batch: samples in one inference.
        threads: that the session may use.
        reliable: the interval is narrower than `BOUND`, and the spread than `SPREAD`.
        rounds: seconds per inference in each round, in order; two timings of one measurement pair by index.
        inputs: how many real inputs took turns (`run.turns`); 0 where all inferences had the same input.
    """

    median_s: float
    interval: tuple[float, float]
    spread: float
    n: int
    burst: int
    batch: int
    threads: int
    reliable: bool
    rounds: tuple[float, ...]
    inputs: int = 0


def measure(
    sessions: Mapping[str, Session],
    inputs: Sequence[Array],
    seconds: float = 2.0,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time sessions against each other: warm, interleaved, in this process, on pinned cores.

    Each round runs every session once, in a new random order, as a burst: one inference that brings the
    network back into the caches and is not timed, then some 2 ms of inferences (two at least, ten at most)
    whose median is the round's time. So each network is timed as one that is served in a loop, warm, not as
    one that has just been evicted by its rivals, while a slow spell of the machine hits all of them alike.
    Rounds go on until `seconds` have passed. Where the result is unreliable, it is measured once more and
    the better of the two is kept.

    Args:
        sessions: by name, loaded for the batch of `inputs` and for `threads`.
        inputs: arrays in the order of the sessions' inputs, the same for all.
        seconds: to measure for, the warm-up apart; at least `ROUNDS` rounds are run whatever it is.
        threads: cores to pin the process to while it measures.
        seed: of the order and of the bootstrap.
    """
    if not sessions:
        raise InputError("measure", got="no session", expected="one or more")
    calls = {name: session.prepared(inputs) for name, session in sessions.items()}
    generator = np.random.default_rng(seed)
    batch = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 1
    with pinned(threads):
        first = _summarised(_rounds(calls, seconds, generator), batch, threads, generator)
        if all(t.reliable for t in first.values()):
            return first
        second = _summarised(_rounds(calls, seconds, generator), batch, threads, generator)
    return min(first, second, key=lambda found: (sum(not t.reliable for t in found.values()), _widest(found)))


def timing(rounds: Sequence[float], burst: int, batch: int, threads: int, seed: int = 0) -> Timing:
    """What the rounds of one session say.

    Args:
        rounds: seconds per inference in each, in order.
        burst: inferences timed in each.
        batch: samples in one inference.
        threads: that the session could use.
        seed: of the bootstrap.
    """
    quarter, half, three = (float(q) for q in np.percentile(rounds, [25, 50, 75]))
    low, high = median_interval(rounds, seed)
    spread = (three - quarter) / half
    reliable = (high - low) / half <= BOUND and spread <= SPREAD
    return Timing(half, (low, high), spread, len(rounds), burst, batch, threads, reliable, tuple(rounds))


def ratio(baseline: Timing, candidate: Timing, seed: int = 0) -> Metric:
    """`latency_ratio`: median of the baseline over median of the candidate, above 1 if the candidate is faster.

    Of means where real inputs took turns. The bootstrap 95 % interval resamples rounds, the same
    ones for both where they were measured together.
    """
    value = baseline.median_s / candidate.median_s
    centre = np.mean if candidate.inputs else np.median
    interval = ratio_interval(baseline.rounds, candidate.rounds, seed, centre)
    return metric("latency_ratio", value, "measured", n=candidate.n, interval=interval, how=_how(candidate))


def latency(timing: Timing) -> Metric:
    """Seconds per inference as a metric."""
    return metric("latency", timing.median_s, "measured", n=timing.n, interval=timing.interval, how=_how(timing))


def throughput(timing: Timing) -> Metric:
    """Samples per second as a metric: batch over latency."""
    low, high = timing.interval
    interval = (timing.batch / high, timing.batch / low)
    value = timing.batch / timing.median_s
    return metric("throughput", value, "measured", n=timing.n, interval=interval, how=_how(timing))


def cost(timing: Timing) -> Metric:
    """Seconds of one core that a sample takes: threads x latency / batch."""
    each = timing.threads / timing.batch
    interval = (each * timing.interval[0], each * timing.interval[1])
    return metric("cost", each * timing.median_s, "measured", n=timing.n, interval=interval, how=_how(timing))


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the median (Efron 1979)."""
    sample = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, len(sample), (_RESAMPLES, len(sample)))
    low, high = np.percentile(np.median(sample[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the mean."""
    sample = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, len(sample), (_RESAMPLES, len(sample)))
    low, high = np.percentile(np.mean(sample[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio_interval(
    baseline: Sequence[float], candidate: Sequence[float], seed: int = 0, centre: Callable[..., Any] = np.median
) -> tuple[float, float]:
    """Bootstrap 95 % interval of median(baseline) / median(candidate); rounds are paired if there are as many.

    Args:
        baseline: seconds of each round.
        candidate: the same.
        seed: of the bootstrap.
        centre: `np.median` or `np.mean`.
    """
    a, b = np.asarray(baseline), np.asarray(candidate)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(a), (_RESAMPLES, len(a)))
    others = picks if len(a) == len(b) else generator.integers(0, len(b), (_RESAMPLES, len(b)))
    ratios = centre(a[picks], axis=1) / centre(b[others], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _how(timing: Timing) -> str:
    shaky = "" if timing.reliable else "; unreliable: the machine was busy or changed its clock"
    threads = f"{timing.threads} thread{'s' if timing.threads > 1 else ''}"
    if timing.inputs:
        return (
            f"mean over {timing.inputs} real inputs in turn, interleaved, one process, {timing.n} rounds of "
            f"{timing.burst} inputs, batch {timing.batch}, {threads}, spread of repeats {timing.spread:.1%}{shaky}"
        )
    return (
        f"interleaved, one process, {timing.n} rounds of {timing.burst} warm inferences, batch {timing.batch}, "
        f"{threads}, spread {timing.spread:.1%}{shaky}"
    )


def _rounds(
    calls: Mapping[str, Callable[[], object]], seconds: float, generator: np.random.Generator
) -> dict[str, tuple[list[float], int]]:
    bursts = {name: _burst(call) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    collecting = gc.isenabled()
    gc.disable()
    try:
        end, done = time.perf_counter() + seconds, 0
        while done < ROUNDS or time.perf_counter() < end:
            for i in generator.permutation(len(names)):
                found[names[i]].append(_timed(calls[names[i]], bursts[names[i]]))
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: (times, bursts[name]) for name, times in found.items()}


def _burst(call: Callable[[], object]) -> int:
    """Warm up, and say how many inferences make a burst."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return int(np.clip(_BURST_SECONDS / min(times), 2, 10))


def _timed(call: Callable[[], object], burst: int) -> float:
    call()
    times = []
    for _ in range(burst):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _summarised(
    found: Mapping[str, tuple[list[float], int]], batch: int, threads: int, generator: np.random.Generator
) -> dict[str, Timing]:
    seed = int(generator.integers(1 << 31))
    return {name: timing(times, burst, batch, threads, seed) for name, (times, burst) in found.items()}


def _widest(timings: Mapping[str, Timing]) -> float:
    return max((t.interval[1] - t.interval[0]) / t.median_s for t in timings.values())
