"""Clocked: what another device says of a network, layer by layer, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trimtab.core.metric import show

if TYPE_CHECKING:
    from rich.table import Table

    from trimtab.run.device import Clocked

_FIGURES = {"cycles": "", "seconds": "s", "joules": "J", "macs": "", "sram_bytes": "byte"}
_HEADS = {"seconds": "time", "joules": "energy", "macs": "multiply-adds", "sram_bytes": "SRAM"}
_WORDS = ("runs_on", "bound_by", "spatial", "kind", "operator")


def clocked_json(told: Clocked) -> dict[str, Any]:
    """As `trimtab profile --json` prints it."""
    metrics = {name: m.json() for name, m in told.metrics.items()}
    return {"runtime": told.runtime, "metrics": metrics, "rows": [dict(r) for r in told.layers], "notes": [*told.notes]}


def clocked_table(told: Clocked, name: str, limit: int | None = None) -> Table:
    """A row for each layer that the device tells of, and its metrics below.

    Args:
        told: what the device said.
        name: of the target.
        limit: rows to show, the most expensive; None for all.
    """
    from rich.table import Table

    source = next(iter(told.metrics.values())).source
    made = Table(title=f"{name}, {source} by {told.runtime}", show_footer=True)
    shown = [key for key in _FIGURES if any(key in row for row in told.layers)]
    made.add_column("layer", "whole network" if told.layers else "the device tells of no layers", overflow="fold")
    totals = {key: told.metrics[m] for key, m in (("seconds", "latency"), ("joules", "energy")) if m in told.metrics}
    for key in shown or [k for k in ("seconds", "joules") if k in totals]:
        foot = show(totals[key].value, _FIGURES[key]) if key in totals else ""
        made.add_column(_HEADS.get(key, key), foot, justify="right", no_wrap=True)
    made.add_column("", overflow="fold")
    dearest = sorted(told.layers, key=lambda row: -float(row.get("seconds", 0.0)))[:limit]
    for row in (row for row in told.layers if row in dearest):
        word = next((str(row[key]) for key in _WORDS if key in row), "")
        made.add_row(str(row["name"]), *(_cell(row, key) for key in shown), word)
    return made


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return ""
    return show(row[key], _FIGURES[key]) if _FIGURES[key] else f"{row[key]:,.0f}"
