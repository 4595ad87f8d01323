"""Roofline: a machine's measured ceilings with the layers of a network on them."""

from __future__ import annotations

import math

from trimtab.core.metric import show
from trimtab.hardware.roofline import Ceilings
from trimtab.profile.profile import Profile
from trimtab.profile.row import Row
from trimtab.report.html import Safe, element
from trimtab.report.picture import LETTER, Axis, Box, Log, across, along, around, counted, framed, mark, named

_SMALLEST, _LARGEST = 3.5, 26.0
"""Radius in pixels: the area of a mark is in proportion to its share of time."""
_KINDS = {"compute": "one", "memory": "two", "overhead": "three"}


def roofline(found: Profile, name: str) -> Safe:
    """Multiply-adds per second that each layer reaches against its multiply-adds per byte, under the ceilings.

        ceiling(x) = min(peak, bandwidth x)

    Each level of memory has its slope and each precision its roof. A layer's mark is as large as its share of the time.
    Rows without multiply-adds have no place here; the picture says how much of the time is theirs.

    Args:
        found: the profile.
        name: of the network, for the title.

    Source: Williams, Waterman and Patterson 2009, figure 1.
    """
    rows = [row for row in found.rows if row.macs and row.seconds > 0 and row.bytes]
    roof = found.ceilings
    peaks = [m.value for m in roof.peak.values()]
    bends = [peak / level.bandwidth.value for peak in peaks for level in roof.levels]
    x = across([*(row.intensity for row in rows), *bends], after=5.0)  # room for the roofs' names
    y = along([*(row.rate for row in rows), *peaks], before=3.0)
    words, boxes = _ceilings(roof, x, y)
    left = 1 - sum(row.share for row in rows)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    return framed(
        f"{name}: {found.runtime}, batch {found.batch}, {threads}",
        Axis(x, [(t, f"{t:g}") for t in x.ticks], "multiply-adds per byte moved"),
        Axis(y, [(t, counted(t)) for t in y.ticks], "multiply-adds per second"),
        _legend(rows),
        f"rows without multiply-adds, {left:.0%} of the time, are not drawn",
        *words,
        *_marks(rows, x, y, boxes),
    )


def _legend(rows: list[Row]) -> list[tuple[str, str]]:
    shown = [(f"{kind} {_shape(rows, side)}", f"bound by {side}") for side, kind in _KINDS.items()]
    found = [(kind, text) for kind, text in shown if any(row.bound == text.removeprefix("bound by ") for row in rows)]
    if {row.precision for row in rows} == {"fp32", "int8"}:
        found.append(("int8", "int8"))
    return [*found, ("", "area: share of the time")]


def _shape(rows: list[Row], side: str) -> str:
    """The class that draws a legend's mark as the layers' are: diamonds where all of them are."""
    return "int8" if all(row.precision == "int8" for row in rows if row.bound == side) else ""


def _ceilings(roof: Ceilings, x: Log, y: Log) -> tuple[list[Safe], list[Box]]:
    top = max(m.value for m in roof.peak.values())
    nearest = max(level.bandwidth.value for level in roof.levels)
    parts: list[Safe] = []
    boxes: list[Box] = []
    for i, level in enumerate(roof.levels):
        rate = level.bandwidth.value
        low = max(x.low, y.low / rate)
        high = min(x.high, top / rate)
        if low >= high:
            continue
        ends = {"x1": x(low), "y1": y(low * rate), "x2": x(high), "y2": y(high * rate)}
        parts.append(element("line", **ends, class_="slope"))
        parts.append(_along(f"{level.name} {show(rate, 'byte')}/s", ends, 0.03 if i % 2 else 0.2))
    for precision, peak in roof.peak.items():
        start, at = max(x.low, peak.value / nearest), y(peak.value)
        parts.append(element("line", x1=x(start), x2=x.end, y1=at, y2=at, class_="roof"))
        text = f"{precision}: {counted(peak.value)}/s"
        parts.append(element("text", text, x=x.end - 4, y=at - 6, text_anchor="end", class_="told"))
        boxes.append((x.end - 4 - LETTER * len(text), at - 20, x.end, at + 2))
    return parts, boxes


def _along(text: str, ends: dict[str, float], at: float) -> Safe:
    """A text on a slope, this share of the way up; slopes may lie close, so that neighbours' texts start apart."""
    angle = math.degrees(math.atan2(ends["y2"] - ends["y1"], ends["x2"] - ends["x1"]))
    x, y = ends["x1"] + at * (ends["x2"] - ends["x1"]), ends["y1"] + at * (ends["y2"] - ends["y1"])
    turn = f"translate({x:.1f} {y:.1f}) rotate({angle:.1f})"
    return element("text", text, transform=turn, dy=-5, class_="told")


def _marks(rows: list[Row], x: Log, y: Log, boxes: list[Box]) -> list[Safe]:
    most = max((row.share for row in rows), default=1.0)
    placed = [
        (row, x(row.intensity), y(row.rate), max(_LARGEST * math.sqrt(row.share / most), _SMALLEST)) for row in rows
    ]
    drawn = []
    for row, cx, cy, radius in placed:
        achieved = "" if row.achieved is None else f", {row.achieved:.0%} of its ceiling"
        told = (
            f"{row.layer}: {'+'.join(row.kinds)} {row.precision}, {show(row.seconds, 's')} ({row.share:.1%}), "
            f"{counted(row.rate)} multiply-adds/s at {row.intensity:.3g} per byte{achieved}, bound by {row.bound}"
        )
        kind = f"{_KINDS.get(row.bound or '', 'three')} {row.precision}"
        drawn.append(element("g", element("title", told), mark(kind, cx, cy, radius)))
    taken = [*boxes, *(around(cx, cy, radius) for _, cx, cy, radius in placed)]
    return [*drawn, *named([(row.layer, cx, cy, radius) for row, cx, cy, radius in placed], taken)]
