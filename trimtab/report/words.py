"""Words: figures, plans and bounds as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core.metric import Metric, show
from trimtab.report.read import Metrics, Report

NAMES = {
    "score": "score",
    "latency": "latency",
    "latency_ratio": "times faster",
    "throughput": "throughput",
    "cost": "time of a core per sample",
    "size": "size on disk",
    "size_ratio": "times smaller",
    "coded_size": "size entropy-coded",
    "decoded_size": "size decoded",
    "decode_time": "time to decode",
    "macs": "multiply-adds",
    "params": "parameters",
    "peak_memory": "peak memory",
    "peak_resident": "peak resident memory",
    "energy": "energy",
    "energy_ratio": "times less energy",
    "edp": "energy-delay product",
    "load_time": "time to load",
    "agreement": "agreement",
}
"""The order and the words of metrics; one of another name comes after them, as it is called."""


def names_in(tables: Sequence[Metrics]) -> list[str]:
    """The metrics that any of the tables holds, in reading order."""
    found = {name for each in tables for name in each}
    return [n for n in NAMES if n in found] + sorted(found - set(NAMES))


def called(name: str) -> str:
    """A metric's name for people."""
    return NAMES.get(name, name.replace("_", " "))


def figure(name: str, found: Metric | None) -> str:
    """A metric's value for people: `90.76 %`, `0.24 ms`, `5.10x`."""
    if found is None:
        return "–"
    return value(name, found.value, found.unit)


def value(name: str, number: float, unit: str) -> str:
    """A number of a metric for people."""
    if name.endswith("_ratio"):
        return f"{number:.2f}x"
    if name in ("macs", "params"):
        return _count(number)
    if unit == "1/s":
        return f"{number:,.4g} /s" if number < 1000 else f"{number:,.0f} /s"
    return show(number, unit)


def _count(number: float) -> str:
    for scale, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.3g} {name}"
    return f"{number:g}"


def source(found: Metric) -> str:
    """Where a figure comes from: `measured, n = 5000, test`."""
    parts = [found.source, f"n = {found.n:,}" if found.n is not None else "", found.split or ""]
    return ", ".join(part for part in parts if part)


def sources(name: str, columns: Sequence[Metrics]) -> str:
    """Where a metric's figures come from: once if all agree, else each."""
    found = list(dict.fromkeys(source(each[name]) for each in columns if name in each))
    return " / ".join(found)


def columns(report: Report) -> list[tuple[str, Metrics]]:
    """The networks side by side: the original, its control where one was trained, and the chosen one."""
    found: list[tuple[str, Metrics]] = [("original", report.baseline)]
    if report.control is not None:
        found.append(("control", report.control))
    if report.winner is not None:
        found.append((f"chosen: {report.winner.name}", report.winner.metrics))
    return found


def summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """A table for the terminal: a row for each metric, a column for each network, and the source."""
    found = columns(report)
    tables = [metrics for _, metrics in found]
    rows = [
        [called(name), *(figure(name, metrics.get(name)) for metrics in tables), sources(name, tables)]
        for name in names_in(tables)
    ]
    return ["", *(name for name, _ in found), "source"], rows


def drop(report: Report, metrics: Metrics) -> float | None:
    """How much score is lost against the better of the original and its control, in the bad direction."""
    before, after = report.reference.get("score"), metrics.get("score")
    if before is None or after is None:
        return None
    return before.value - after.value if before.direction == "up" else after.value - before.value


def difference(number: float, unit: str) -> str:
    """A difference of scores: fractions in points."""
    return f"{100 * number:.2f} points" if unit == "fraction" else f"{number:.4g}" + ("" if unit == "1" else f" {unit}")


def goal(report: Report) -> str:
    """The goal in one line."""
    wanted = report.goal
    unit = report.baseline["score"].unit if "score" in report.baseline else "1"
    parts = [f"least {called(wanted['minimise'])}"]
    if wanted["max_drop"] is not None:
        parts.append(f"at most {difference(wanted['max_drop'], unit)} lost")
    parts += [f"{called(n)} at most {value(n, v, _unit(report, n))}" for n, v in wanted["at_most"].items()]
    parts += [f"{called(n)} at least {value(n, v, _unit(report, n))}" for n, v in wanted["at_least"].items()]
    return ", ".join(parts)


def _unit(report: Report, name: str) -> str:
    found = next((m[name] for _, m in columns(report) if name in m), None)
    return found.unit if found is not None else "1"


def step(made: Mapping[str, Any]) -> str:
    """A step of a plan in one phrase."""
    name, settings = str(made.get("technique", "?")), {k: v for k, v in made.items() if k != "technique"}
    keep, blocks = settings.pop("keep", None), settings.pop("blocks", None)
    layers = settings.pop("layers", None)
    parts = []
    if isinstance(keep, Mapping):
        left = sum(len(v) for v in keep.values() if isinstance(v, list))
        parts.append(f"{len(keep)} groups of channels cut, {left} channels left in them")
    if isinstance(blocks, list):
        parts.append(", ".join(map(str, blocks)))
    if isinstance(layers, Mapping):
        kinds = Counter(_plain(v) for v in layers.values())
        parts += [f"{kind} in {count} layer{'s' if count > 1 else ''}" for kind, count in kinds.items()]
    parts += [f"{key} {_plain(v)}" for key, v in settings.items()]
    return f"{name}: {'; '.join(parts)}" if parts else name


def _plain(setting: Any) -> str:
    if isinstance(setting, Mapping):
        return " ".join(f"{k} {_plain(v)}" for k, v in setting.items())
    if isinstance(setting, (list, tuple)):
        shown = ", ".join(map(str, setting[:6]))
        return f"{shown} and {len(setting) - 6} more" if len(setting) > 6 else shown or "none"
    return f"{setting:g}" if isinstance(setting, float) else str(setting)
