"""Turns: time sessions on real inputs in turn, for networks that do less for some inputs than for others."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from trimtab.core.errors import InputError
from trimtab.run.layers import parts
from trimtab.run.measure import ROUNDS, SPREAD, Timing, mean_interval
from trimtab.run.pinned import pinned
from trimtab.run.runtime import Array, Session, read_onnx

BLOCK = 4
"""Inputs that a round times."""
_REPEATS = 3


def depends_on_input(path: Path) -> bool:
    """Whether an ONNX file holds a branch, so that what it computes depends on what it is given."""
    return any(node.op_type == "If" for node in parts(read_onnx(path).graph)[0])


def measure_in_turn(
    sessions: Mapping[str, Session],
    inputs: Sequence[Sequence[Array]],
    seconds: float = 2.0,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time sessions against each other on real inputs: the mean over them, warm, interleaved, on pinned cores.

    Each round takes the next few inputs and runs every session on these, in a new random order: an inference that
    brings the network back into the caches, then each input three times, of which the median counts. A round's time
    is the mean over its inputs, the latency the mean over rounds; every input has had as many turns as any other, or
    one less. The interval holds both how the inputs differ and how the machine does.

    Args:
        sessions: by name, loaded for the batch of the inputs and for `threads`.
        inputs: of each inference, arrays in the order of the sessions' inputs; the same for all sessions.
        seconds: to measure for; at least `ROUNDS` rounds are run whatever it is.
        threads: cores to pin the process to while it measures.
        seed: of the order and of the bootstrap.

    Raises:
        InputError: there is no session or no input.
    """
    if not sessions or not inputs:
        raise InputError("measure", got="no session" if not sessions else "no input", expected="one or more")
    generator = np.random.default_rng(seed)
    rounds: dict[str, list[float]] = {name: [] for name in sessions}
    noise: dict[str, list[float]] = {name: [] for name in sessions}
    order, names = _endless(len(inputs), generator), list(sessions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with pinned(threads):
            end, done = time.perf_counter() + seconds, 0
            while done < ROUNDS or time.perf_counter() < end:
                block = [inputs[next(order)] for _ in range(min(BLOCK, len(inputs)))]
                for i in generator.permutation(len(names)):
                    times, spreads = _timed(sessions[names[i]], block)
                    rounds[names[i]].append(float(np.mean(times)))
                    noise[names[i]] += spreads
                done += 1
    finally:
        if collecting:
            gc.enable()
    batch = int(inputs[0][0].shape[0]) if inputs[0] and inputs[0][0].ndim else 1
    count = min(len(inputs), done * min(BLOCK, len(inputs)))
    return {
        name: _summary(rounds[name], float(np.median(noise[name])), count, len(block), batch, threads, seed)
        for name in sessions
    }


def _endless(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Indices in a new random order again and again."""
    while True:
        yield from (int(i) for i in generator.permutation(count))


def _timed(session: Session, block: Sequence[Sequence[Array]]) -> tuple[list[float], list[float]]:
    """Seconds of each input of a block, and how far its repeats lie apart, over their median."""
    session.prepared(block[0])()
    times, spreads = [], []
    for inputs in block:
        call = session.prepared(inputs)
        own = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
        middle = float(np.median(own))
        times.append(middle)
        spreads.append((max(own) - min(own)) / middle if middle else 0.0)
    return times, spreads


def _summary(
    rounds: Sequence[float], noise: float, inputs: int, burst: int, batch: int, threads: int, seed: int
) -> Timing:
    interval = mean_interval(rounds, seed)
    reliable = noise <= SPREAD
    return Timing(
        float(np.mean(rounds)), interval, noise, len(rounds), burst, batch, threads, reliable, tuple(rounds), inputs
    )
