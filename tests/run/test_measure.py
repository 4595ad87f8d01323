"""Measure: intervals by hand, rounds and order by a clock that the test moves."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import InputError
from trimtab.run import measure as measuring
from trimtab.run.cpu import fastest
from trimtab.run.measure import (
    ROUNDS,
    latency,
    measure,
    median_interval,
    ratio,
    ratio_interval,
    throughput,
)
from trimtab.run.pinned import pinned

INPUT = np.zeros((4, 2), np.float32)


class Clock:
    """Time that passes only when a session runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """A session whose k-th run takes `durations(k)` seconds."""

    inputs: tuple[Any, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, clock: Clock, name: str, durations: Callable[[int], float]) -> None:
        self.clock, self.name, self.durations, self.count = clock, name, durations, 0

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        raise AssertionError("not what is timed")

    def prepared(self, inputs: Sequence[Any]) -> Callable[[], object]:
        def once() -> None:
            self.clock.now += self.durations(self.count)
            self.clock.calls.append(self.name)
            self.count += 1

        return once

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measuring, "time", made)
    return made


def test_constant_times_give_exact_medians_and_ratio(clock: Clock) -> None:
    sessions = {"a": Timed(clock, "a", lambda k: 4e-3), "b": Timed(clock, "b", lambda k: 1e-3)}
    timings = measure(sessions, [INPUT], seconds=0.0)
    assert timings["a"].median_s == pytest.approx(4e-3)
    assert timings["b"].interval == pytest.approx((1e-3, 1e-3))
    assert timings["a"].n == ROUNDS
    assert timings["a"].reliable
    assert timings["b"].spread == pytest.approx(0.0)
    found = ratio(timings["a"], timings["b"])
    assert found.value == pytest.approx(4.0)
    assert found.interval == pytest.approx((4.0, 4.0))
    assert found.direction == "up"
    assert found.how is not None
    assert "interleaved, one process, 30 rounds" in found.how
    assert latency(timings["b"]).value == pytest.approx(1e-3)
    assert throughput(timings["b"]).value == pytest.approx(4 / 1e-3)


def test_the_first_inference_of_a_burst_is_not_timed(clock: Clock) -> None:
    # warm-up of 5, then bursts of 1 + 2: the first of each burst is slow
    slow_first = Timed(clock, "a", lambda k: 9e-3 if k >= 5 and (k - 5) % 3 == 0 else 1e-3)
    timing = measure({"a": slow_first}, [INPUT], seconds=0.0)["a"]
    assert timing.burst == 2
    assert timing.median_s == pytest.approx(1e-3)


def test_rounds_are_interleaved_in_changing_order_and_fill_the_time(clock: Clock) -> None:
    sessions = {name: Timed(clock, name, lambda k: 10e-3) for name in "ab"}
    timings = measure(sessions, [INPUT], seconds=5.95)
    assert timings["a"].n == timings["b"].n == 100  # 5.95 s of rounds of 2 sessions x 3 runs x 10 ms
    runs = "".join(clock.calls[10:])
    bursts = runs[::3]
    assert all(runs[i : i + 3] == bursts[i // 3] * 3 for i in range(0, len(runs), 3))
    rounds = {bursts[i : i + 2] for i in range(0, len(bursts), 2)}
    assert rounds == {"ab", "ba"}


def test_a_noisy_session_is_measured_twice_and_flagged(clock: Clock) -> None:
    generator = np.random.default_rng(0)
    noisy = Timed(clock, "a", lambda k: float(generator.lognormal(-6.0, 1.0)))
    timing = measure({"a": noisy}, [INPUT], seconds=0.0)["a"]
    assert not timing.reliable
    assert noisy.count >= 2 * (5 + ROUNDS * 3)
    assert "unreliable" in str(latency(timing).how)


def test_a_clock_that_jumps_is_measured_twice_and_flagged(clock: Clock) -> None:
    # 70 of 100 rounds at 1 ms, the rest at half the clock: the median is sharp, and says nothing of the machine.
    # A round is one inference that warms up and two that are timed; 5 more before the first.
    jumping = Timed(clock, "a", lambda k: 2e-3 if (k // 3) % 10 < 3 else 1e-3)
    found = measure({"a": jumping}, [INPUT], seconds=0.6)["a"]
    assert found.interval == pytest.approx((1e-3, 1e-3))
    assert found.spread == pytest.approx(1.0)
    assert not found.reliable
    assert jumping.count >= 2 * (5 + 100 * 3)
    assert "spread 100.0%; unreliable" in str(latency(found).how)
    (note,) = fastest({"": found, "onnxruntime": found}).notes
    assert "spread by 100%" in note


def test_a_jump_that_is_over_is_measured_again_and_forgotten(clock: Clock) -> None:
    settled = Timed(clock, "a", lambda k: (2e-3 if (k // 3) % 2 else 1e-3) if k < 5 + ROUNDS * 3 else 1e-3)
    found = measure({"a": settled}, [INPUT], seconds=0.0)["a"]
    assert found.reliable
    assert found.median_s == pytest.approx(1e-3)
    assert fastest({"": found, "onnxruntime": found}).notes == ()


def test_intervals_by_hand() -> None:
    assert median_interval([2.0] * 50) == (2.0, 2.0)
    low, high = median_interval(list(range(101)))
    # order statistics of a median of n = 101: ranks 50 -+ 1.96 sqrt(101)/2
    assert low == pytest.approx(50 - 1.96 * 101**0.5 / 2, abs=2.5)
    assert high == pytest.approx(50 + 1.96 * 101**0.5 / 2, abs=2.5)


def test_paired_rounds_cancel_what_slows_both() -> None:
    slow = np.linspace(1.0, 3.0, 60)
    low, high = ratio_interval(2 * slow, slow)
    assert (low, high) == pytest.approx((2.0, 2.0))
    low, high = ratio_interval(2 * slow, slow[:-1])
    assert high - low > 0.2


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match="no session"):
        measure({}, [INPUT])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_pinning_is_undone() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == (set(cores) or before)
        assert len(cores) == (1 if len(before) > 1 else 0)
    assert os.sched_getaffinity(0) == before
    with pinned(len(before) + 1) as cores:
        assert cores == ()
