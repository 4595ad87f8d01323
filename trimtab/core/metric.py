"""Metric: a number with its unit, its source and its direction; and quantities with units as text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.core.errors import InputError

Source = Literal["measured", "modelled", "predicted"]
Direction = Literal["up", "down"]

_METRICS: dict[str, tuple[str, Direction]] = {
    "latency": ("s", "down"),
    "latency_ratio": ("1", "up"),
    "throughput": ("1/s", "up"),
    "cost": ("s", "down"),
    "size": ("byte", "down"),
    "size_ratio": ("1", "up"),
    "coded_size": ("byte", "down"),
    "decoded_size": ("byte", "down"),
    "decode_time": ("s", "down"),
    "macs": ("1", "down"),
    "params": ("1", "down"),
    "peak_memory": ("byte", "down"),
    "peak_resident": ("byte", "down"),
    "energy": ("J", "down"),
    "energy_ratio": ("1", "up"),
    "edp": ("J.s", "down"),
    "load_time": ("s", "down"),
    "agreement": ("fraction", "up"),
}
"""Unit and better direction of every metric whose name is fixed; `score` is the task's own. `cost` is the time of one
core that a sample takes: threads x latency / batch. `size` is what a runtime reads; `coded_size` is model.trim's, which
is decoded to `decoded_size` bytes in `decode_time` before a runtime can read it."""

METRIC_NAMES = ("score", *_METRICS)

_UNITS: dict[str, tuple[str, float]] = {
    "s": ("s", 1.0), "ms": ("s", 1e-3), "us": ("s", 1e-6), "ns": ("s", 1e-9), "min": ("s", 60.0), "h": ("s", 3600.0),
    "B": ("byte", 1.0), "kB": ("byte", 1e3), "KB": ("byte", 1e3), "MB": ("byte", 1e6), "GB": ("byte", 1e9),
    "KiB": ("byte", 2.0**10), "MiB": ("byte", 2.0**20), "GiB": ("byte", 2.0**30),
    "J": ("J", 1.0), "mJ": ("J", 1e-3), "uJ": ("J", 1e-6), "nJ": ("J", 1e-9), "/s": ("1/s", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One figure.

    Args:
        value: the figure, in `unit`.
        unit: `fraction`, `s`, `1/s`, `byte`, `1`, `J`, `J.s`, or the score's own.
        source: measured on the thing itself, modelled by formula, or predicted by a learned model.
        direction: `up` if more is better.
        n: how many samples or repetitions it is from (measured only).
        interval: its 95 % interval (measured only).
        split: the data it is on: `validate`, `test`, ...
        how: one phrase for a reader who doubts it.
    """

    value: float
    unit: str
    source: Source
    direction: Direction
    n: int | None = None
    interval: tuple[float, float] | None = None
    split: str | None = None
    how: str | None = None

    def json(self) -> dict[str, Any]:
        """The form of report.json, without the fields that are None."""
        fields = {k: v for k, v in vars(self).items() if v is not None}
        return {**fields, "interval": list(self.interval)} if self.interval else fields

    @staticmethod
    def of_json(data: dict[str, Any]) -> Metric:
        """Back from report.json; FileError is the caller's to raise on a missing field."""
        interval = data.get("interval")
        return Metric(**{**data, "interval": (interval[0], interval[1]) if interval else None})


def metric(name: str, value: float, source: Source, **more: Any) -> Metric:
    """A metric of a fixed name with its unit and direction filled in."""
    unit, direction = unit_of(name)
    return Metric(value=float(value), unit=unit, source=source, direction=direction, **more)


def unit_of(name: str) -> tuple[str, Direction]:
    """Unit and direction of a metric by name.

    Raises:
        InputError: no metric has this name.
    """
    if name not in _METRICS:
        raise InputError("metric", where=name, expected=f"one of {', '.join(METRIC_NAMES)}")
    return _METRICS[name]


def quantity(text: str, unit: str) -> float:
    """Read a quantity such as `2ms`, `1.5MB` or `300uJ` in `unit` (`s`, `byte`, `J`, `1/s`, `1`, `fraction`).

    A bare number is refused where a unit is needed; a percent is taken where a fraction is.
    """
    match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z/%]*)\s*", text)
    try:
        value, suffix = (float(match[1]), match[2]) if match else (math.nan, "")
    except ValueError:
        value, suffix = math.nan, ""
    if unit in ("1", "fraction"):
        scale = {"": 1.0, "%": 0.01, "x": 1.0}.get(suffix, math.nan)
    else:
        scale = _UNITS[suffix][1] if suffix in _UNITS and _UNITS[suffix][0] == unit else math.nan
    if not math.isfinite(value * scale):
        examples = {"s": "2ms", "byte": "1.5MB", "J": "300uJ", "1/s": "100/s"}.get(unit, "0.9")
        raise InputError("quantity", got=repr(text), expected=f"a number in {unit}, such as {examples}")
    return value * scale


_SCALES = {"s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")), "J": ((1, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"))}


def show(value: float, unit: str) -> str:
    """A figure for people: `0.56 ms`, `1.05 MB`, `90.8 %`."""
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    scales = {**_SCALES, "byte": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))}.get(unit, ())
    for scale, name in scales:
        if abs(value) >= scale or scale == scales[-1][0]:
            return f"{value / scale:.3g} {name}"
    return f"{value:,.4g}" + ("" if unit == "1" else f" {unit}")
