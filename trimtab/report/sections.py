"""Sections: one function each, from a report to a part of the page; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core.metric import Metric
from trimtab.report import plots
from trimtab.report.html import Safe, element, joined
from trimtab.report.read import Layer, Point, Report
from trimtab.report.words import (
    called,
    columns,
    difference,
    drop,
    figure,
    goal,
    names_in,
    source,
    sources,
    step,
    value,
)

_OPEN = 30
"""Layers that are shown without being asked for."""


def head(report: Report) -> Safe:
    """The task, whether the goal is met, and the figures that matter most."""
    verdict = "goal met" if report.met else f"goal not met: {called(report.binding or 'a bound')} binds"
    return element(
        "header",
        element("p", "trimtab report", class_="over"),
        element("h1", report.task),
        element("span", verdict, class_="verdict" if report.met else "verdict not"),
        element("span", goal(report), class_="goal"),
        element("div", *_tiles(report), class_="tiles"),
    )


def _tiles(report: Report) -> list[Safe]:
    won = report.winner
    if won is None:
        return []
    tiles = []
    lost = drop(report, won.metrics)
    if "score" in won.metrics:
        against = "the control" if report.reference is report.control else "the original"
        unit = won.metrics["score"].unit
        word = (
            ""
            if lost is None
            else f"{difference(abs(lost), unit)} {'lost' if lost >= 0 else 'gained'} against {against}"
        )
        tiles.append(_tile(figure("score", won.metrics["score"]), "score", word, won.metrics["score"]))
    for name, base in (("latency_ratio", "latency"), ("size_ratio", "size")):
        if name in won.metrics:
            change = f"{figure(base, report.baseline.get(base))} → {figure(base, won.metrics.get(base))}"
            tiles.append(_tile(figure(name, won.metrics[name]), called(name), change, won.metrics[name]))
    where = report.runtime or str(report.target.get("runtime") or report.target.get("device") or "")
    setting = ", ".join(f"{k} {report.target[k]}" for k in ("batch", "threads") if k in report.target)
    tiles.append(
        element(
            "div", element("b", where), element("span", "runs fastest in"), element("small", setting), class_="tile"
        )
    )
    return tiles


def _tile(big: str, name: str, line: str, found: Metric) -> Safe:
    return element(
        "div",
        element("b", big),
        element("span", name),
        element("small", line),
        element("small", _why(found, name)),
        class_="tile",
    )


def _why(found: Metric, name: str) -> str:
    return f"{source(found)}{_interval(name, found)}"


def _interval(name: str, found: Metric) -> str:
    if found.interval is None:
        return ""
    key = {"times faster": "latency_ratio", "times smaller": "size_ratio"}.get(name, name)
    low, high = (value(key, v, found.unit) for v in found.interval)
    return f", 95 % in {low} to {high}"


def compared(report: Report) -> Safe:
    """Original, control and chosen side by side, each figure with its source."""
    shown = columns(report)
    tables = [metrics for _, metrics in shown]
    top = element("tr", element("th"), *(element("th", n, class_="n") for n, _ in shown), element("th", "source"))
    rows = [
        element(
            "tr",
            element("th", called(name)),
            *(_cell(name, metrics.get(name)) for metrics in tables),
            element("td", sources(name, tables), _how(name, tables), class_="from"),
        )
        for name in names_in(tables)
    ]
    about = (
        "The control is the original given the same training, or the student trained without its teacher; "
        "a drop counts against the better of the two."
    )
    if report.control is None:
        about = "No control was trained: a drop counts against the original as it is."
    return section("Original against chosen", about, table(top, rows))


def _cell(name: str, found: Metric | None) -> Safe:
    if found is None:
        return element("td", "–", class_="n")
    css = "n" if found.source == "measured" else "n modelled"
    small = []
    if found.interval is not None:
        low, high = (value(name, v, found.unit) for v in found.interval)
        small = [element("small", f"{low} to {high}")]
    return element("td", figure(name, found), *small, class_=css)


def _how(name: str, tables: Sequence[Mapping[str, Metric]]) -> Safe:
    """How the chosen network's figure was found."""
    told = next((each[name].how for each in reversed(tables) if name in each and each[name].how), None)
    return element("small", told) if told else joined([])


def front(report: Report) -> Safe | None:
    """All networks that were proved: a picture, and their figures."""
    picture = plots.front(report)
    if picture is None and len(report.points) < 2:
        return None
    names = [n for n in names_in([p.metrics for p in report.points]) if n in _FRONT]
    top = element("tr", element("th", "network"), *(element("th", called(n), class_="n") for n in names))
    rows = [
        element(
            "tr",
            element("th", p.name),
            *(_cell(n, p.metrics.get(n)) for n in names),
            class_="chosen" if p.name == report.chosen else None,
        )
        for p in sorted(report.points, key=_speed)
    ]
    drawn = [element("div", picture, class_="scroll pad")] if picture is not None else []
    about = joined(
        [
            "Each network stands ready under front/; ",
            element("code", "trimtab choose DIR NAME"),
            " takes another one. The area of a mark is its size on disk, the lines are 95 % intervals.",
        ]
    )
    return section("The front", about, *drawn, element("p"), table(top, rows))


def _speed(point: Point) -> float:
    return point.metrics["latency_ratio"].value if "latency_ratio" in point.metrics else 0.0


_FRONT = ("score", "latency", "latency_ratio", "size", "size_ratio", "macs")


def _precision(layer: Layer) -> str:
    zeros = "" if layer.zeros is None else f", {100 * layer.zeros:.0f} % zeros"
    return f"{layer.precision or '–'}{zeros}"


def layers(report: Report) -> Safe | None:
    """What became of each layer of the chosen network."""
    if not report.layers:
        return None
    most = max(math.prod(x.before) for x in report.layers)
    top = element(
        "tr",
        *(element("th", n) for n in ("layer", "weights left")),
        *(element("th", n, class_="n") for n in ("shape before", "shape after", "precision")),
    )
    rows = [
        element(
            "tr",
            element("th", x.name),
            element(
                "td", plots.bar(x, most), class_="wide", title=f"{plots.share_left(x):.0%} of the weights are left"
            ),
            element("td", _shape(x.before), class_="n"),
            element("td", "removed", class_="n gone")
            if x.after is None
            else element("td", _shape(x.after), class_="n"),
            element("td", _precision(x), class_="n"),
        )
        for x in report.layers
    ]
    cut = sum(x.after is not None and x.after != x.before for x in report.layers)
    gone = sum(x.after is None for x in report.layers)
    about = f"{len(report.layers)} layers: {cut} cut, {gone} removed, {len(rows) - cut - gone} of their full shape."
    return section("Layer by layer", about, rolled(table(top, rows), len(rows)))


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"


def plan(report: Report) -> Safe | None:
    """The steps of the chosen network, and those that did not pay."""
    won = report.winner
    if won is None:
        return None
    steps = [element("li", step(s)) for s in won.steps] or [element("li", "none: the original as it is")]
    return section("The plan", "plan.json holds every index; this is its short form.", element("ol", *steps))


def dropped(report: Report) -> Safe | None:
    """What did not pay on the target, for the chosen network and for the others."""
    found = [(p.name, sentence) for p in sorted(report.points, key=_not(report.chosen)) for sentence in p.dropped]
    if not found:
        return None
    items = [element("li", element("b", name), ": ", sentence) for name, sentence in found]
    return section("Dropped, and why", "Steps that did not pay on this target.", element("ul", *items))


def _not(chosen: str | None) -> Any:
    def last(point: Point) -> bool:
        return point.name != chosen

    return last


def failed(report: Report) -> Safe | None:
    """Plans that did not get through."""
    if not report.failed:
        return None
    top = element("tr", *(element("th", n) for n in ("stage", "plan", "what went wrong")))
    rows = [
        element(
            "tr", element("td", f.stage), element("td", "; ".join(map(step, f.steps)) or "–"), element("td", f.error)
        )
        for f in report.failed
    ]
    return section("Failed trials", "Kept for the record; none of them is in the front.", table(top, rows))


def time_spent(report: Report) -> Safe | None:
    """Where the time of the run went."""
    if not report.timeline:
        return None
    total = sum(max(seconds, 0.0) for _, seconds in report.timeline)
    return section("Where the time went", f"{plots.minutes(total)} in all.", plots.stages(report.timeline))


def notes(report: Report) -> Safe | None:
    """What the user should know."""
    if not report.notes:
        return None
    return section("Notes", "", element("ul", *(element("li", n) for n in report.notes)))


def machine(report: Report) -> Safe:
    """What the figures were measured on."""
    rows: list[object] = []
    for key, found in report.machine.items():
        if found not in (None, "", [], {}):
            rows += [element("dt", key.replace("_", " ")), element("dd", _told(key, found))]
    about = "Timings are of this machine and these versions."
    if "address" in report.machine:
        about = "Timings are of the machine at this address and its versions; scores were taken where the run was made."
    return section("The machine", about, element("dl", *rows))


def _told(key: str, found: Any) -> str:
    if key == "memory" and isinstance(found, (int, float)):
        return value("memory", found, "byte")
    if isinstance(found, Mapping):
        sizes = key == "caches"
        return ", ".join(f"{k} {value(k, v, 'byte') if sizes and isinstance(v, int) else v}" for k, v in found.items())
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def replay(report: Report) -> Safe:
    """The commands that check and repeat the run."""
    target = str(report.target.get("name") or report.target.get("runtime") or report.target.get("device") or "cpu")
    lines = [
        "trimtab verify DIR --task TASK          # reopen it in a clean process, measure again, compare",
        f"trimtab apply DIR/plan.json TASK --target {target} --seed {report.seed} --out NEW",
        "trimtab choose DIR NAME                 # another network of the front",
        "python -c \"import trimtab; network = trimtab.load('DIR')\"",
    ]
    if report.winner is not None and any(made.get("technique") == "Quantise" for made in report.winner.steps):
        lines.insert(1, "trimtab explain DIR --task TASK         # what the quantisation of each layer cost")
    about = "DIR is this folder, TASK the task file that the run was given."
    return section("Check and replay", about, element("pre", "\n".join(lines)))


def rolled(made: Safe, rows: int) -> Safe:
    """A table of layers that can be rolled up where it is long."""
    return element("details", element("summary", f"all {rows} layers"), made, open="") if rows > _OPEN else made


def section(title: str, about: object, *parts: object) -> Safe:
    """A part of the page with its heading and a sentence."""
    told = [element("p", about)] if about else []
    return element("section", element("h2", title), *told, *parts)


def table(top: Safe, rows: Sequence[Safe]) -> Safe:
    """A table that scrolls where the page is narrow."""
    return element("div", element("table", element("thead", top), element("tbody", *rows)), class_="scroll")
