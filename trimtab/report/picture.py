"""Picture: what drawings on two logarithmic axes share: the frame, the names beside marks, and the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.errors import InputError
from trimtab.core.store import write_atomic
from trimtab.report.html import Safe, element, raw
from trimtab.report.style import CSS

WIDTH, HEIGHT = 960.0, 600.0
LEFT, RIGHT, TOP, BOTTOM = 84.0, 30.0, 98.0, 64.0
LETTER = 7.8
"""Width of a letter in pixels, about."""
_STYLE = """
svg { --paper: #fbfaf8; --card: #ffffff; --ink: #1c2024; --soft: #646b73; --line: #e3e1dc; --accent: #0a7f77;
  --warn: #b45309; --cool: #4763b5; font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { svg { --paper: #131619; --card: #1a1e22; --ink: #e7e9eb; --soft: #9aa3ac;
  --line: #2d3339; --accent: #4fc9bd; --warn: #f0a95b; --cool: #8fa8f0; } }
text { fill: var(--soft); } .back { fill: var(--card); } .grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.title { fill: var(--ink); font-size: 16px; font-weight: 600; } .name { fill: var(--ink); }
.name, .told { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.roof { stroke: var(--ink); stroke-width: 2; fill: none; } .slope { stroke: var(--soft); stroke-dasharray: 6 4; }
.mark { fill-opacity: .55; stroke-width: 1.5; } .line { fill: none; stroke-width: 1.5; }
.one { fill: var(--accent); stroke: var(--accent); } .two { fill: var(--cool); stroke: var(--cool); }
.three { fill: var(--warn); stroke: var(--warn); } .line.one, .line.two, .line.three { fill: none; }
.knee { fill: none; stroke: var(--ink); stroke-width: 2; } .bound { stroke: var(--warn); stroke-dasharray: 5 4; }
g:hover .mark { stroke-width: 3; }
"""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Log:
    """Values above 0 on a logarithmic axis from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values within: powers of ten, with 2 and 5 between where they are few."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if len(powers) > 5 else (1, 2, 5)
        return tuple(k * 10.0**p for p in powers for k in steps if self.low <= k * 10.0**p <= self.high)


def across(values: Sequence[float], before: float = 1.6, after: float = 1.6) -> Log:
    """The axis from left to right, with a factor of air on each side."""
    return Log(min(values) / before, max(values) * after, LEFT, WIDTH - RIGHT)


def along(values: Sequence[float], before: float = 1.6, after: float = 1.6) -> Log:
    """The axis from bottom to top, with a factor of air on each side."""
    return Log(min(values) / before, max(values) * after, HEIGHT - BOTTOM, TOP)


@dataclass(frozen=True)
class Axis:
    """One axis of a picture: where values lie, the ticks' texts by value, and what is told."""

    scale: Log
    ticks: Sequence[tuple[float, str]]
    told: str


def framed(title: str, x: Axis, y: Axis, legend: Sequence[tuple[str, str]], note: str, *parts: Safe) -> Safe:
    """A drawing with axes, a grid, a legend of marks (class, text) above it, and a note below."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    drawn = [
        element("style", raw(_STYLE)),
        element("rect", width=WIDTH, height=HEIGHT, class_="back"),
        element("text", title, x=LEFT, y=26, class_="title"),
        *_legend(legend),
    ]
    for value, text in y.ticks:
        at = y.scale(value)
        drawn.append(element("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        drawn.append(element("text", text, x=LEFT - 10, y=at + 4, text_anchor="end"))
    for value, text in x.ticks:
        at = x.scale(value)
        drawn.append(element("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="grid"))
        drawn.append(element("text", text, x=at, y=bottom + 20, text_anchor="middle"))
    drawn.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    drawn.append(element("text", x.told, x=right, y=bottom + 46, text_anchor="end"))
    drawn.append(element("text", note, x=LEFT, y=bottom + 46))
    drawn.append(element("text", y.told, x=10, y=TOP - 14))
    size = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return element(
        "svg", *drawn, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=size, role="img", aria_label=title
    )


def _legend(legend: Sequence[tuple[str, str]]) -> list[Safe]:
    parts, at = [], LEFT
    for kind, text in legend:
        if kind:
            parts.append(mark(kind, at + 6, 49.0, 6.0))
            at += 20
        parts.append(element("text", text, x=at, y=53.5))
        at += 22 + LETTER * len(text)
    return parts


def mark(kind: str, x: float, y: float, radius: float) -> Safe:
    """A circle; a diamond where the class says `int8`."""
    if "int8" not in kind:
        return element("circle", cx=x, cy=y, r=radius, class_=f"mark {kind}")
    reach = 1.2533 * radius  # a diamond of the circle's area: 2 reach^2 = pi radius^2
    corners = ((x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y))
    return element("polygon", points=" ".join(f"{a:.2f},{b:.2f}" for a, b in corners), class_=f"mark {kind}")


def named(texts: Iterable[tuple[str, float, float, float]], taken: list[Box], above: bool = False) -> list[Safe]:
    """Names beside their marks, the first ones first; one that would lie on another is left to the hover.

    Args:
        texts: each name with x, y and radius of its mark.
        taken: boxes to keep free: left, top, right, bottom; those of the names are added.
        above: try the place above a mark first, rather than the one to the right.
    """
    parts = []
    for full, x, y, radius in texts:
        text = full if len(full) <= 28 else f"{full[:27]}…"
        width, gap = LETTER * len(text), radius + 5
        places = ((x + gap, y + 4), (x - gap - width, y + 4), (x - width / 2, y - gap), (x - width / 2, y + gap + 10))
        for left, base in sorted(places, key=lambda place: place != places[2]) if above else places:
            box = (left - 2, base - 12, left + width + 2, base + 4)
            inside = box[0] > LEFT and box[2] < WIDTH - 4 and box[1] > TOP and box[3] < HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                parts.append(element("text", text, x=left, y=base, class_="name"))
                break
    return parts


def around(x: float, y: float, radius: float) -> Box:
    """The box of a mark, a little smaller than the mark."""
    return (x - 0.8 * radius, y - 0.8 * radius, x + 0.8 * radius, y + 0.8 * radius)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def counted(value: float) -> str:
    """`50 G`, `2 M`, `0.1`."""
    for scale, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value:.3g}"


def save(picture: Safe, path: Path) -> None:
    """Write a picture as `.svg`, or in a page as `.html`.

    Raises:
        InputError: another ending. FileError: it cannot be written.
    """
    check_name(path)
    text = str(picture)
    if path.suffix == ".html":
        head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>trimtab</title><style>{CSS}</style>'
        text = f"{head}</head><body><main>{picture}</main></body></html>"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_name(path: Path) -> None:
    """InputError unless a picture can be written under this name."""
    if path.suffix not in (".svg", ".html"):
        raise InputError("picture", where=path, got=path.suffix or "no ending", expected=".svg or .html")
