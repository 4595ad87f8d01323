"""Costs: what each layer of the chosen network costs on a device that tells, as a table with bars."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.core.metric import show
from trimtab.report.html import Safe, element
from trimtab.report.read import Cost, Report
from trimtab.report.sections import rolled, section, table
from trimtab.report.words import value

_SHOWN = (("cycles", "cycles"), ("seconds", "time"), ("joules", "energy"), ("macs", "multiply-adds"))
"""Figures of a row that get a column, where any row has them."""
_UNITS = {"seconds": "s", "joules": "J"}
_WORDS = ("runs_on", "bound_by", "spatial", "kind", "operator")
"""Words of a row that are told, the first that is there: why it costs what it costs, or what it is."""


def costs(report: Report) -> Safe | None:
    """Cycles, time and energy of each layer of the chosen network; None where the device tells of no layers."""
    won = report.winner
    if won is None or not won.costs:
        return None
    shown = [(key, name) for key, name in _SHOWN if any(key in c.figures for c in won.costs)]
    order = ("joules", "seconds") if report.goal["minimise"] in ("energy", "edp") else ("seconds", "cycles", "joules")
    by = next((key for key in order if key in dict(shown)), "")
    whole = sum(c.figures.get(by, 0.0) for c in won.costs)
    most = max((c.figures.get(by, 0.0) for c in won.costs), default=0.0)
    top = element(
        "tr",
        *(element("th", n) for n in ("layer", f"share of the {dict(_SHOWN).get(by, 'cost')}")),
        *(element("th", name, class_="n") for _, name in shown),
        element("th", ""),
    )
    rows = [_row(c, by, whole, most, [key for key, _ in shown]) for c in won.costs]
    source = won.metrics["latency"].source if "latency" in won.metrics else "modelled"
    elsewhere = [c for c in won.costs if not c.figures]
    about = f"{len(rows) - len(elsewhere)} layers and operators, as the device tells of them: each figure is {source}."
    if elsewhere:
        about += f" {len(elsewhere)} fell back and are not counted: {', '.join(c.name for c in elsewhere)}."
    return section("What each layer costs", about, rolled(table(top, rows), len(rows)))


def _row(cost: Cost, by: str, whole: float, most: float, keys: Sequence[str]) -> Safe:
    part = max(cost.figures.get(by, 0.0), 0.0)
    style = f"--of: {100 * part / most if most > 0 else 0.0:.1f}%; --left: 100%"
    bar = element("span", element("i"), class_="bar", style=style)
    told = f"{part / whole:.1%}" if whole > 0 and by in cost.figures else "–"
    word = next((cost.words[key] for key in _WORDS if key in cost.words), "")
    return element(
        "tr",
        element("th", cost.name),
        element("td", bar, element("small", told), class_="wide"),
        *(element("td", _figure(key, cost.figures.get(key)), class_="n") for key in keys),
        element("td", word.replace("_", " "), class_="gone" if not cost.figures else "from"),
    )


def _figure(key: str, number: float | None) -> str:
    if number is None:
        return "–"
    if key in _UNITS:
        return show(number, _UNITS[key])
    return value("macs", number, "1") if key == "macs" else f"{number:,.0f}"
