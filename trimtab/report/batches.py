"""Batches: throughput against latency, a line for each number of threads, with the knee."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.core.metric import show
from trimtab.profile.batch import BatchPoint, knee
from trimtab.report.html import Safe, element
from trimtab.report.picture import Axis, Box, Log, across, along, around, counted, framed, mark, named

_KINDS = ("one", "two", "three")
_RADIUS = 6.0


def batches(points: Sequence[BatchPoint], name: str, bound: float | None = None) -> Safe:
    """Samples per second against the latency of a batch, on logarithmic axes.

    Args:
        points: of one network.
        name: of the network, for the title.
        bound: on latency, s, drawn as a line; None for none.
    """
    threads = sorted({p.threads for p in points})
    x = across([p["latency"] for p in points] + ([bound] if bound else []))
    y = along([p["throughput"] for p in points])
    legend = [(_KINDS[i % 3], f"{n} thread{'s' if n > 1 else ''}") for i, n in enumerate(threads)]
    parts: list[Safe] = []
    if bound:
        parts.append(element("line", x1=x(bound), x2=x(bound), y1=y.start, y2=y.end, class_="bound"))
    texts: list[tuple[str, float, float, float]] = []
    for i, count in enumerate(threads):
        line, names = _line([p for p in points if p.threads == count], _KINDS[i % 3], x, y)
        parts += line
        texts += names
    taken: list[Box] = [around(cx, cy, radius) for _, cx, cy, radius in texts]
    return framed(
        f"{name}: throughput against latency",
        Axis(x, [(t, show(t, "s")) for t in x.ticks], "latency of a batch"),
        Axis(y, [(t, counted(t)) for t in y.ticks], "samples per second"),
        [*legend, ("knee", "knee"), ("", "numbers: samples in a batch")],
        f"the bound on latency: {show(bound, 's')}" if bound else "",
        *parts,
        *named(texts, taken, above=True),
    )


def _line(
    points: list[BatchPoint], kind: str, x: Log, y: Log
) -> tuple[list[Safe], list[tuple[str, float, float, float]]]:
    bend = knee(points)
    placed = [(p, x(p["latency"]), y(p["throughput"])) for p in sorted(points, key=lambda p: p.batch)]
    corners = " ".join(f"{a:.2f},{b:.2f}" for _, a, b in placed)
    parts = [element("polyline", points=corners, class_=f"line {kind}")]
    for p, a, b in placed:
        told = (
            f"batch {p.batch}, threads {p.threads}, {p.runtime}: {show(p['latency'], 's')}, "
            f"{p['throughput']:,.0f} samples/s, {show(p['cost'], 's')} of a core per sample"
        )
        ring = [element("circle", cx=a, cy=b, r=_RADIUS + 5, class_="knee")] if p == bend else []
        parts.append(element("g", element("title", told), mark(kind, a, b, _RADIUS), *ring))
    texts = [(f"{p.batch} (knee)" if p == bend else str(p.batch), a, b, _RADIUS + 4) for p, a, b in placed]
    return parts, sorted(texts, key=lambda t: "knee" not in t[0])
