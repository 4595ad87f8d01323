"""Pinned: keep the whole process on the least busy cores while something is timed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def pinned(cores: int) -> Iterator[tuple[int, ...]]:
    """Pin every thread of this process to the `cores` least busy cores it may use; restored on leaving.

    Yields the cores, or an empty tuple where the system has no affinity (macOS) or too few cores: then
    nothing is pinned.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    allowed = os.sched_getaffinity(0)
    chosen = _idlest(allowed, cores) if cores < len(allowed) else ()
    before = {thread: os.sched_getaffinity(thread) for thread in _threads()} if chosen else {}
    for thread in before:
        _place(thread, set(chosen))
    try:
        yield chosen
    finally:
        for thread in before.keys() | _threads() if chosen else ():
            _place(thread, before.get(thread, allowed))


def _idlest(allowed: set[int], cores: int) -> tuple[int, ...]:
    import psutil

    busy = psutil.cpu_percent(interval=0.1, percpu=True)
    return tuple(sorted(allowed, key=lambda core: (busy[core] if core < len(busy) else 0.0, -core))[:cores])


def _threads() -> set[int]:
    """Ids of this process's threads (a runtime's own among them)."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return {0}


def _place(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # the thread has ended since, or the container forbids it: timing goes on
        os.sched_setaffinity(thread, cores)
