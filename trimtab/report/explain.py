"""Explain: the page on what each layer's quantisation cost, in the look of a run's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trimtab.core.store import write_atomic
from trimtab.pipeline.explain import Explanation
from trimtab.pipeline.layer_costs import Effect, LayerCost
from trimtab.report.html import Safe, element
from trimtab.report.page import document
from trimtab.report.words import difference, value

FILE = "explain.html"
_WIDTH, _NAMES, _ROW, _TOP = 860.0, 230.0, 26.0, 34.0
_HEIGHT, _LEFT, _RIGHT, _BOTTOM = 300.0, 40.0, 26.0, 52.0
_MOST = 40
"""Layers in the chart; the table has all of them."""


def write_explanation(found: Explanation, folder: Path) -> Path:
    """Write `explain.html` into a folder, and return its path."""
    made, path = explanation_page(found), folder / FILE
    write_atomic(path, lambda p: p.write_text(made, encoding="utf-8"))
    return path


def explanation_page(found: Explanation) -> str:
    """The whole page; every text in it is escaped."""
    parts = [_head(found), _chart(found), _histogram(found), _table(found), _notes(found)]
    return document(f"{found.task} explained", *(part for part in parts if part is not None))


def rows(found: Explanation) -> tuple[list[str], list[list[str]]]:
    """The table: head and rows, the costliest layer first."""
    scored = found.costs.all.score is not None
    head = ["layer", "weight", "input", "cost", "alone", "all but it", "weight SQNR", "output SQNR", "input range"]
    head[6:6] = ["score alone", "score all but it"] if scored else []
    return head, [_row(found, layer) for layer in found.costs.layers]


def summary(found: Explanation) -> list[str]:
    """Lines for the terminal: what the whole of the quantisation costs."""
    costs = found.costs
    told = [f"loss of quantising all   {costs.all.loss:.3g}   (divergence of the outputs, {_data(found)})"]
    if costs.none.score is not None and costs.all.score is not None:
        told.append(f"score without   {_score(found, costs.none)}   with   {_score(found, costs.all)}")
    return told


def _row(found: Explanation, layer: LayerCost) -> list[str]:
    scores = [_score(found, layer.one), _score(found, layer.but_one)] if found.costs.all.score is not None else []
    return [
        layer.name,
        layer.kind or "–",
        "float" if layer.bits is None else f"uint{layer.bits}",
        f"{layer.cost:.3g}",
        f"{layer.one.loss:.3g}",
        f"{layer.but_one.loss:.3g}",
        *scores,
        _decibel(layer.weight_sqnr),
        _decibel(layer.output_sqnr),
        _range(layer),
    ]


def _decibel(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.1f} dB"


def _range(layer: LayerCost) -> str:
    if layer.range is None:
        return "–"
    clipped = f", {100 * layer.clipped:.2g} % clipped" if layer.clipped > 0 else ""
    return f"{layer.range[0]:.3g} to {layer.range[1]:.3g}{clipped}"


def _score(found: Explanation, effect: Effect) -> str:
    if found.score is None or effect.score is None:
        return "–"
    return value("score", effect.score, found.score[1])


def _data(found: Explanation) -> str:
    return f"{found.costs.samples:,} samples, {found.costs.split}"


def _head(found: Explanation) -> Safe:
    costs = found.costs
    worst = next((layer for layer in costs.layers if layer.kind), None)
    tiles = [
        _tile(f"{costs.all.loss:.3g}", "loss of quantising", f"divergence of the outputs; measured, {_data(found)}")
    ]
    if found.score is not None and costs.none.score is not None and costs.all.score is not None:
        lost = costs.none.score - costs.all.score
        lost = lost if found.score[2] == "up" else -lost
        word = f"{difference(abs(lost), found.score[1])} {'lost' if lost >= 0 else 'gained'} by quantising alone"
        tiles.append(_tile(_score(found, costs.all), found.score[0], f"{word}; measured, {_data(found)}"))
    if worst is not None:
        share = worst.cost / costs.all.loss if costs.all.loss > 0 else 0.0
        tiles.append(_tile(f"{100 * share:.0f} %", "of it by one layer", worst.name))
    return element(
        "header",
        element("p", "trimtab explain", class_="over"),
        element("h1", found.task),
        element("span", found.point, class_="verdict"),
        element("span", "what the quantisation of each layer costs", class_="goal"),
        element("div", *tiles, class_="tiles"),
    )


def _tile(big: str, name: str, line: str) -> Safe:
    return element("div", element("b", big), element("span", name), element("small", line), class_="tile")


def _section(title: str, about: str, *parts: object) -> Safe:
    return element("section", element("h2", title), element("p", about), *parts)


def _chart(found: Explanation) -> Safe:
    shown = found.costs.layers[:_MOST]
    whole = found.costs.all.loss
    most = max((max(layer.one.loss, whole - layer.but_one.loss, 0.0) for layer in shown), default=0.0) or 1.0
    height = _TOP + _ROW * len(shown) + 8
    full = _WIDTH - _NAMES - 90
    drawn = [*_legend(_NAMES, (("alone", "quantised alone"), ("rest", "saved by leaving only it out")))]
    for i, layer in enumerate(shown):
        y = _TOP + _ROW * i
        pairs = (("alone", layer.one.loss, 0), ("rest", whole - layer.but_one.loss, 1))
        bars = [
            element("rect", x=_NAMES, y=y + 10 * k, height=9, width=full * max(loss, 0.0) / most, class_=kind)
            for kind, loss, k in pairs
        ]
        told = f"{layer.name}: {layer.one.loss:.3g} alone, {whole - layer.but_one.loss:.3g} saved by leaving it out"
        drawn.append(element("text", _short(layer.name), x=_NAMES - 8, y=y + 14, text_anchor="end", class_="name"))
        drawn.append(element("g", element("title", told), *bars))
        drawn.append(element("text", f"{layer.cost:.2g}", x=_WIDTH - 4, y=y + 14, text_anchor="end"))
    picture = element("svg", *drawn, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", aria_label="cost of each layer")
    about = "The cost, on the right, is the mean of the two bars: of what a layer adds first, and of what it adds last."
    return _section("Layer by layer", about, element("div", picture, class_="scroll pad"))


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _legend(left: float, marks: Sequence[tuple[str, str]]) -> list[Safe]:
    parts, x = [], left
    for kind, text in marks:
        parts.append(element("rect", x=x, y=6, width=12, height=9, class_=kind))
        parts.append(element("text", text, x=x + 18, y=15))
        x += 40 + 7.2 * len(text)
    return parts


def _histogram(found: Explanation) -> Safe | None:
    worst = next((layer for layer in found.costs.layers if layer.kind), None)
    counts = found.costs.histogram
    if worst is None or worst.seen is None or not counts:
        return None
    ends = [*worst.seen, *(worst.range or ())]
    low, high = min(ends), max(ends)
    bottom, most = _HEIGHT - _BOTTOM, math.log1p(max(counts))

    def across(number: float) -> float:
        place: float = _LEFT + (number - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        return place

    drawn: list[Safe] = []
    if worst.range is not None:
        left, right = (across(end) for end in worst.range)
        drawn.append(element("rect", x=left, y=_TOP, width=right - left, height=bottom - _TOP, class_="inside"))
        for x, text, side in ((left, f"{worst.range[0]:.3g}", "start"), (right, f"{worst.range[1]:.3g}", "end")):
            drawn.append(element("line", x1=x, x2=x, y1=_TOP - 6, y2=bottom, class_="bound"))
            drawn.append(element("text", text, x=x, y=_TOP - 12, text_anchor=side, class_="boundname"))
    width = (worst.seen[1] - worst.seen[0]) / len(counts)
    for i, count in enumerate(counts):
        start, tall = worst.seen[0] + i * width, (bottom - _TOP) * math.log1p(count) / most if most else 0.0
        shape = {"x": across(start), "y": bottom - tall, "width": max(across(start + width) - across(start) - 0.6, 0.4)}
        told = f"{start:.3g} to {start + width:.3g}: {count:,}"
        drawn.append(element("g", element("title", told), element("rect", **shape, height=tall, class_="alone")))
    drawn.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    for number, side in ((low, "start"), (high, "end")):
        drawn.append(element("text", f"{number:.3g}", x=across(number), y=bottom + 20, text_anchor=side))
    drawn.append(element("text", "value of the input", x=_WIDTH - _RIGHT, y=bottom + 40, text_anchor="end"))
    told = f"Input of {worst.name}"
    picture = element("svg", *drawn, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img", aria_label=told)
    about = (
        f"The input of {worst.name}, the layer that costs most, on a logarithmic scale of counts. The shaded range has "
        f"levels, and {100 * worst.clipped:.2g} % of the values lie outside of it."
    )
    return _section("The worst layer's activations", about, element("div", picture, class_="scroll pad"))


def _table(found: Explanation) -> Safe:
    head, body = rows(found)
    top = element("tr", *(element("th", name, class_=None if i == 0 else "n") for i, name in enumerate(head)))
    made = [
        element("tr", element("th", row[0]), *(element("td", cell, class_="n") for cell in row[1:])) for row in body
    ]
    about = (
        "Losses are divergences of the outputs from those without quantisation. A layer's quantisation is that of its "
        "weight and of its input; SQNR is the signal to quantisation noise ratio."
    )
    table = element("table", element("thead", top), element("tbody", *made))
    return _section("The figures", about, element("div", table, class_="scroll"))


def _notes(found: Explanation) -> Safe | None:
    return _section("Notes", "", element("ul", *(element("li", n) for n in found.notes))) if found.notes else None
