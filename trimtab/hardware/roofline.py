"""Roofline: what a layer's time is bounded by, from counts and a machine's ceilings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.core.errors import FileError, InputError
from trimtab.core.metric import Metric

Side = Literal["compute", "memory", "overhead"]


@dataclass(frozen=True)
class Level:
    """One level of memory.

    Args:
        name: `L1`, `L2`, `L3` or `memory`.
        capacity: bytes that fit into it; infinite for memory.
        bandwidth: byte/s, reads and writes together.
    """

    name: str
    capacity: float
    bandwidth: Metric


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches at best, at one number of threads of one runtime.

    Args:
        runtime: the runtime that computed.
        threads: how many threads it had.
        peak: multiply-adds per second (1/s) by precision, `fp32` and `int8`.
        levels: of memory, from the nearest to the farthest.
        overhead: seconds that a node takes which computes next to nothing.
    """

    runtime: str
    threads: int
    peak: Mapping[str, Metric]
    levels: tuple[Level, ...]
    overhead: Metric

    def json(self) -> dict[str, Any]:
        """As JSON; an infinite capacity is null."""
        levels = [
            {"name": x.name, "capacity": x.capacity if x.capacity < float("inf") else None, **x.bandwidth.json()}
            for x in self.levels
        ]
        return {
            "runtime": self.runtime,
            "threads": self.threads,
            "peak": {k: m.json() for k, m in self.peak.items()},
            "levels": levels,
            "overhead": self.overhead.json(),
        }

    @staticmethod
    def of_json(data: Any, where: object = None) -> Ceilings:
        """Back from `json`; FileError if it is something else."""
        try:
            levels = []
            for entry in data["levels"]:
                rest = {k: v for k, v in entry.items() if k not in ("name", "capacity")}
                capacity = float("inf") if entry["capacity"] is None else float(entry["capacity"])
                levels.append(Level(str(entry["name"]), capacity, Metric.of_json(rest)))
            return Ceilings(
                runtime=str(data["runtime"]),
                threads=int(data["threads"]),
                peak={str(k): Metric.of_json(m) for k, m in data["peak"].items()},
                levels=tuple(levels),
                overhead=Metric.of_json(data["overhead"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError("ceilings", where=where, got=repr(error), do="Run `trimtab probe` again.") from error


@dataclass(frozen=True)
class Bound:
    """The least time that a piece of work can take, and which ceiling says so."""

    seconds: float
    by: Side


def attainable(peak: float, bandwidth: float, intensity: float) -> float:
    """Multiply-adds per second that a kernel can reach at best.

    performance = min(peak, bandwidth x intensity)

    Args:
        peak: multiply-adds per second.
        bandwidth: byte/s.
        intensity: multiply-adds per byte moved.

    Source: Williams, Waterman and Patterson 2009, section 3; equations 3 and 4 of the survey.

    >>> attainable(peak=100.0, bandwidth=10.0, intensity=4.0)
    40.0
    >>> attainable(peak=100.0, bandwidth=10.0, intensity=25.0)
    100.0
    """
    return min(peak, bandwidth * intensity)


def ridge(peak: float, bandwidth: float) -> float:
    """The intensity (multiply-adds per byte) at which memory stops and compute starts to bind: peak / bandwidth."""
    return peak / bandwidth


def level_of(levels: tuple[Level, ...], working_set: float) -> Level:
    """The nearest level that holds a working set of so many bytes; the farthest if none does."""
    if not levels:
        raise InputError("roofline", got="no memory levels", expected="at least one")
    return next((level for level in levels if working_set <= level.capacity), levels[-1])


def bound(ceilings: Ceilings, precision: str, macs: float, moved: float) -> Bound:
    """The least time for so many multiply-adds and bytes, and what binds it.

    time = max(macs / peak, moved / bandwidth, overhead)

    Where macs / moved is above the ridge, compute binds rather than memory, as in the roofline; below the cost of one
    node, neither does. The bandwidth is that of the nearest level which holds all the bytes moved.

    Args:
        ceilings: of the machine, at the thread count that the work is timed at.
        precision: a key of `ceilings.peak`.
        macs: multiply-adds.
        moved: bytes of weights, inputs and outputs, each counted once.

    Source: Williams 2009 for the first two; the third ceiling is ours (docs/decisions, 0003).
    """
    if precision not in ceilings.peak:
        raise InputError("roofline: precision", got=precision, expected=f"one of {', '.join(ceilings.peak)}")
    sides: dict[Side, float] = {
        "compute": macs / ceilings.peak[precision].value,
        "memory": moved / level_of(ceilings.levels, moved).bandwidth.value,
        "overhead": ceilings.overhead.value,
    }
    by = max(sides, key=lambda side: sides[side])
    return Bound(sides[by], by)
