"""Plots: pictures as SVG in the page's own colours, with the figures behind each mark on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.metric import Metric
from trimtab.report.html import Safe, element, joined
from trimtab.report.read import Layer, Metrics, Report
from trimtab.report.words import called, figure, value

_WIDTH, _HEIGHT = 860.0, 440.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 72.0, 26.0, 22.0, 54.0
_SMALLEST, _LARGEST = 5.0, 20.0
"""Radius in pixels: the area of a mark is in proportion to size on disk."""
_LETTER = 7.2
"""Width of a letter in pixels, about."""


@dataclass(frozen=True)
class _Mark:
    """One network in the picture."""

    name: str
    kind: str
    metrics: Metrics
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class _Scale:
    """Values of a metric on an axis of the picture, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def front(report: Report) -> Safe | None:
    """Score against latency ratio, a mark for each network, its area the size on disk; None with fewer than two."""
    shown = [("original", "original", report.baseline)] if report.baseline else []
    if report.control:  # the same network as the original, trained on: it lies at the original's speed and size
        same = {n: m for n, m in report.baseline.items() if n in ("latency_ratio", "size")}
        shown.append(("control", "control", {**same, **report.control}))
    shown += [
        (p.name, "chosen" if p.name == report.chosen else "point", p.metrics)
        for p in report.points
        if p.name != "original"
    ]
    up = "score" if any("score" in m for _, _, m in shown) else "size_ratio"
    both = [(n, k, m) for n, k, m in shown if up in m and "latency_ratio" in _with_ratio(n, m)]
    if len(both) < 2:
        return None
    xs = [_with_ratio(n, m)["latency_ratio"].value for n, _, m in both]
    ys = [m[up].value for _, _, m in both]
    allowed = _allowed(report) if up == "score" else None
    asked = report.goal["at_least"].get("latency_ratio")
    across = _scale([*xs, *([asked] if asked else [])], _LEFT, _WIDTH - _RIGHT)
    along = _scale([*ys, *([allowed] if allowed is not None else [])], _HEIGHT - _BOTTOM, _TOP)
    most = max((m["size"].value for _, _, m in both if "size" in m), default=0.0)
    marks = [
        _Mark(n, k, m, across(x), along(y), _radius(m, most)) for (n, k, m), x, y in zip(both, xs, ys, strict=True)
    ]
    unit = both[0][2][up].unit
    parts = [
        *_grid(across, along, up, unit),
        *_bounds(across, along, asked, allowed, both[0][2][up].direction == "up"),
        *(_mark(mark, across, along, up) for mark in sorted(marks, key=lambda m: -m.radius)),
        *_names(marks),
    ]
    words = f"{called(up)} against {called('latency_ratio')} of {len(marks)} networks"
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img", aria_label=words)


def _with_ratio(name: str, metrics: Metrics) -> Metrics:
    """The original and its control are as fast as themselves."""
    if "latency_ratio" in metrics or name not in ("original", "control"):
        return metrics
    return {**metrics, "latency_ratio": Metric(1.0, "1", "measured", "up")}


def _allowed(report: Report) -> float | None:
    """The worst score that the goal allows."""
    reference, most = report.reference.get("score"), report.goal["max_drop"]
    if reference is None or most is None:
        return None
    allowed: float = reference.value - most if reference.direction == "up" else reference.value + most
    return allowed


def _radius(metrics: Metrics, most: float) -> float:
    if "size" not in metrics or most <= 0:
        return _SMALLEST + 2
    return max(_LARGEST * math.sqrt(max(metrics["size"].value, 0.0) / most), _SMALLEST)


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    """An axis over the values with some air, and ticks at round numbers."""
    low, high = min(values), max(values)
    air = 0.09 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - air, high + air
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
    first = math.ceil(low / step)
    ticks = tuple(k * step for k in range(first, first + 12) if k * step <= high)
    return _Scale(low, high, start, end, ticks)


def _grid(across: _Scale, along: _Scale, up: str, unit: str) -> list[Safe]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in along.ticks:
        y = along(tick)
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", _tick(up, tick, unit), x=_LEFT - 10, y=y + 4, text_anchor="end"))
    for tick in across.ticks:
        x = across(tick)
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid"))
        parts.append(element("text", f"{tick:g}x", x=x, y=bottom + 20, text_anchor="middle"))
    parts.append(element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", "times faster than the original", x=right, y=bottom + 42, text_anchor="end"))
    parts.append(element("text", called(up), x=_LEFT - 10, y=_TOP - 8, text_anchor="end"))
    return parts


def _tick(name: str, number: float, unit: str) -> str:
    return f"{100 * number:g} %" if unit == "fraction" else value(name, number, unit)


def _bounds(across: _Scale, along: _Scale, asked: float | None, allowed: float | None, up: bool) -> list[Safe]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    if allowed is not None:
        y = along(allowed)
        parts.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="bound"))
        text = "the goal allows no less" if up else "the goal allows no more"
        parts.append(element("text", text, x=right - 6, y=y - 6, text_anchor="end", class_="boundname"))
    if asked is not None:
        x = across(asked)
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="bound"))
        text = f"asked: {asked:g}x"
        parts.append(element("text", text, x=x - 6, y=bottom - 8, text_anchor="end", class_="boundname"))
    return parts


def _mark(mark: _Mark, across: _Scale, along: _Scale, up: str) -> Safe:
    """A mark with its 95 % intervals, and its figures on hover."""
    parts = []
    css = f"whisker {mark.kind}"
    for name, scale in ((up, along), ("latency_ratio", across)):
        interval = mark.metrics[name].interval if name in mark.metrics else None
        if interval is None:
            continue
        a, b = (min(max(scale(v), min(scale.start, scale.end)), max(scale.start, scale.end)) for v in interval)
        if name == up:
            parts.append(element("line", x1=mark.x, x2=mark.x, y1=a, y2=b, class_=css))
        else:
            parts.append(element("line", x1=a, x2=b, y1=mark.y, y2=mark.y, class_=css))
    parts.append(element("circle", cx=mark.x, cy=mark.y, r=mark.radius, class_=f"point {mark.kind}"))
    told = "; ".join(f"{called(n)} {figure(n, m)} ({m.source})" for n, m in mark.metrics.items())
    return element("g", element("title", f"{mark.name}: {told}"), *parts)


def _names(marks: Sequence[_Mark]) -> list[Safe]:
    """Names beside their marks, the chosen one's first; one that would lie on another is left to the hover."""
    order = {"chosen": 0, "original": 1, "control": 2, "point": 3}
    taken: list[tuple[float, float, float, float]] = [
        (m.x - m.radius / 2, m.y - m.radius / 2, m.x + m.radius / 2, m.y + m.radius / 2) for m in marks
    ]
    parts = []
    for mark in sorted(marks, key=lambda m: order[m.kind]):
        text = mark.name if len(mark.name) <= 24 else f"{mark.name[:23]}…"
        width = _LETTER * len(text)
        gap = mark.radius + 5
        for x, y in (
            (mark.x + gap, mark.y + 4),
            (mark.x - gap - width, mark.y + 4),
            (mark.x - width / 2, mark.y - gap),
            (mark.x - width / 2, mark.y + gap + 10),
        ):
            box = (x, y - 12, x + width, y + 3)
            inside = box[0] > _LEFT and box[2] < _WIDTH and box[1] > 0 and box[3] < _HEIGHT - _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(element("text", text, x=x, y=y, class_=f"name {mark.kind}"))
                break
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def share_left(layer: Layer) -> float:
    """Share of a layer's weights that is left, and not zero where it has many zeros."""
    before = math.prod(layer.before)
    kept = min(math.prod(layer.after) / before, 1.0) if layer.after is not None and before > 0 else 0.0
    return kept * (1 - (layer.zeros or 0.0))


def bar(layer: Layer, most: int) -> Safe:
    """A layer's weights before (its length, as a root, against the largest layer's) and what is left of them."""
    of = math.sqrt(max(math.prod(layer.before), 0) / most) if most > 0 else 0.0
    style = f"--of: {100 * min(of, 1.0):.1f}%; --left: {100 * share_left(layer):.1f}%"
    return element("span", element("i"), class_="bar", style=style)


def stages(timeline: Sequence[tuple[str, float]]) -> Safe:
    """Where the time of the run went: one bar cut into stages, with a legend."""
    listed = [(name, max(seconds, 0.0)) for name, seconds in timeline]
    tones = [1 - 0.75 * i / max(len(listed) - 1, 1) for i in range(len(listed))]
    total = sum(seconds for _, seconds in listed) or 1.0
    cut = [
        element("i", style=f"--share: {seconds / total:.4f}; --tone: {tone:.2f}", title=f"{name}: {minutes(seconds)}")
        for (name, seconds), tone in zip(listed, tones, strict=True)
    ]
    names = [
        element("span", element("i", style=f"--tone: {tone:.2f}"), f"{name} {minutes(seconds)}")
        for (name, seconds), tone in zip(listed, tones, strict=True)
    ]
    return joined([element("div", *cut, class_="stages"), element("div", *names, class_="legend")])


def minutes(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
