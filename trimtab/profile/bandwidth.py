"""Memory bandwidth by level, from copies whose working set fits the level."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from trimtab.core.metric import Metric
from trimtab.hardware.roofline import Level

_REPEATS = 7
_BYTES = 256 << 20
"""Moved in one timed round of calls."""
_LINE = 64
"""Bytes of a cache line."""
_TINY = 64 << 10
"""Working sets up to this many bytes are passed over several times in one call, which costs more than one pass."""
_BEYOND, _SMALLEST, _LARGEST = 4, 64 << 20, 512 << 20
"""The working set that memory is measured with: so many times the last cache, within these bounds."""

Buffer = npt.NDArray[np.float32]


def levels(caches: Mapping[str, int], threads: int = 1) -> tuple[Level, ...]:
    """Measured bandwidth of each cache and of memory, with so many threads copying at once.

    A copy of n bytes moves 2 n; what the processor reads in order to write is not counted (STREAM's convention).

    Args:
        caches: bytes by name, nearest first; the last one is shared by all threads, the others are each one's own.
        threads: that copy.

    Source: McCalpin 1995, STREAM, the copy kernel.
    """
    names = list(caches)
    found = []
    for name in names:
        shared = threads if name == names[-1] and len(names) > 1 else 1
        rate = _copies(caches[name] // 2 // shared, threads)
        found.append(Level(name, float(caches[name]), rate))
    beyond = min(max(_BEYOND * max(caches.values(), default=0), _SMALLEST), _LARGEST)
    return (*found, Level("memory", math.inf, _copies(beyond // threads, threads)))


def _copies(working_set: int, threads: int) -> Metric:
    """Byte/s of copying half of the working set onto the other half, again and again."""
    pairs = [_buffers(working_set) for _ in range(threads)]
    moved = 2 * pairs[0][0].nbytes
    calls = max(1, _BYTES // moved)

    def copy(pair: tuple[Buffer, Buffer]) -> None:
        for _ in range(calls):
            np.copyto(*pair)

    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(_REPEATS + 1):  # the first round touches the pages
            start = time.perf_counter()
            list(pool.map(copy, pairs))
            times.append(time.perf_counter() - start)
    rate = threads * calls * moved / min(times[1:])
    how = f"best of {_REPEATS} rounds of copying, working set of each thread {working_set >> 10} KiB"
    return Metric(rate, "byte/s", "measured", "up", n=_REPEATS, how=how)


def _buffers(working_set: int) -> tuple[Buffer, Buffer]:
    """Target and source as [passes, elements].

    A tiny range is seen through windows that slide by a cache line over a quarter of it: one call makes many passes
    over bytes that stay in the nearest cache.
    """
    half = working_set // 2
    passes = max(1, half // (4 * _LINE)) if working_set <= _TINY else 1
    window = (half - _LINE * (passes - 1)) // 4
    bases = (np.ones(half // 4, np.float32), np.ones(half // 4, np.float32))
    views = [np.lib.stride_tricks.as_strided(base, (passes, window), (_LINE, 4), writeable=True) for base in bases]
    return views[0], views[1]
