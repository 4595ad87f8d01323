"""The profile and the probe as tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.core.metric import show
from trimtab.hardware.roofline import Ceilings, ridge
from trimtab.profile.advice import advice
from trimtab.profile.batch import BatchPoint, knee, pareto
from trimtab.profile.fusion import STATES, Fate, Fusion
from trimtab.profile.network import QUANTISING
from trimtab.profile.own import OwnProfile, layer_of
from trimtab.profile.profile import Profile
from trimtab.profile.row import Row

if TYPE_CHECKING:
    from rich.table import Table

_NUMBERS = ("params", "MACs", "bytes", "MACs/byte", "time", "share")
_COLUMNS = ("layer", "computed", *_NUMBERS, "bound by", "of ceiling", "what could help")


def rows(found: Profile, limit: int | None = None) -> list[tuple[str, ...]]:
    """The table's cells, the slowest row first; rows after `limit` are summed up in one."""
    shown = found.rows[:limit]
    left = found.rows[len(shown) :]
    cells = [_cells(row, found) for row in shown]
    if left:
        cells.append(_sum(f"{len(left)} more", left))
    return cells


def table(found: Profile, limit: int | None = None) -> Table:
    """A rich table with the totals at its foot.

    Args:
        found: the profile.
        limit: rows to show; None for all.
    """
    from rich.table import Table

    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    made = Table(title=f"{found.runtime}, batch {found.batch}, {threads}", show_footer=True)
    for name, foot in zip(_COLUMNS, _sum("total", found.rows), strict=True):
        left = name not in (*_NUMBERS, "of ceiling")
        made.add_column(name, foot, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for cells in rows(found, limit):
        made.add_row(*cells)
    return made


def summary(found: Profile) -> list[str]:
    """What stands under the table, one sentence a line."""
    totals = found.totals
    lines = [
        f"Whole network {show(totals['latency'].value, 's')}; kernels {show(totals['kernels'].value, 's')}; "
        f"outside kernels {show(found.outside, 's')} (measured apart; the profiler's own cost is in the kernels).",
        f"{_count(totals['params'].value)} parameters, {_count(totals['macs'].value)} multiply-adds, "
        f"{show(totals['bytes'].value, 'byte')} moved, "
        f"peak activation memory {show(totals['peak_memory'].value, 'byte')}.",
    ]
    by = {side: sum(row.share for row in found.rows if row.bound == side) for side in ("compute", "memory", "overhead")}
    told = ", ".join(f"{side} {share:.0%}" for side, share in by.items())
    added = sum(row.share for row in found.rows if row.bound is None)
    lines.append(f"Share of the kernels' time by what binds them: {told}; conversions of the runtime {added:.0%}.")
    return [*lines, *found.notes]


def ceilings_table(found: Sequence[Ceilings]) -> Table:
    """What `probe` measured: a column for each runtime and number of threads."""
    from rich.table import Table

    made = Table(title="What this machine reaches")
    made.add_column("ceiling")
    for one in found:
        made.add_column(f"{one.runtime}, {one.threads} thread{'s' if one.threads > 1 else ''}", justify="right")
    for precision in found[0].peak if found else ():
        made.add_row(f"{precision} multiply-adds", *(f"{_count(c.peak[precision].value)}/s" for c in found))
    for i, level in enumerate(found[0].levels if found else ()):
        room = "" if math.isinf(level.capacity) else f" ({level.capacity / 1024:,.0f} KiB)"
        made.add_row(f"{level.name}{room}", *(f"{show(c.levels[i].bandwidth.value, 'byte')}/s" for c in found))
    if found:
        made.add_row("one more node", *(show(c.overhead.value, "s") for c in found))
        made.add_row("fp32 ridge, MACs/byte", *(_ridge(c) for c in found))
    return made


def fusion_table(found: Fusion, limit: int | None = None) -> Table:
    """A row for each kernel that a runtime runs: the operators that it computes, or why it computes only one.

    Args:
        found: what the runtime made of the file.
        limit: kernels to show; None for all.
    """
    from rich.table import Table

    by_step: dict[int, list[Fate]] = {}
    for fate in found.fates:
        if fate.step is not None:
            by_step.setdefault(fate.step, []).append(fate)
    made = Table(title=f"What {found.runtime} computes together")
    for name in ("operators", "layer", "kernel", "why not with others"):
        made.add_column(name, overflow="fold")
    for step in sorted(by_step)[:limit]:
        together = by_step[step]
        head = next((fate for fate in together if fate.state != "fused"), together[0])
        plain = [f.operator for f in together if f.operator not in QUANTISING] or [head.operator]
        inside = " in Q/DQ" if len(plain) < len(together) and head.operator not in QUANTISING else ""
        made.add_row(f"{'+'.join(plain)}{inside}", head.layer, head.kernel, "" if head.state == "kernel" else head.told)
    if limit is not None and len(by_step) > limit:
        made.add_row(f"{len(by_step) - limit} more", "", "", "")
    return made


def fusion_summary(found: Fusion) -> str:
    """The counts in one sentence."""
    told = ", ".join(f"{count} {STATES[state]}" for state, count in found.counts.items() if count)
    return f"{len(found.fates) - found.counts['added']} operators in the file, {found.kernels} kernels: {told}."


def own_table(found: OwnProfile, limit: int | None = None) -> Table:
    """A row for each kernel of a runtime that compiles from the graph, in the order of execution.

    Args:
        found: the kernels.
        limit: how many to show, the slowest; None for all.
    """
    from rich.table import Table

    whole = sum(k.seconds for k in found.kernels)
    slowest = sorted(found.kernels, key=lambda k: -k.seconds)[:limit]
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    made = Table(title=f"{found.runtime}, batch {found.batch}, {threads}", show_footer=True)
    for name, foot in (("kernel", "total"), ("by", ""), ("layer", ""), ("time", show(whole, "s")), ("share", "100.0%")):
        made.add_column(name, foot, justify="right" if name in ("time", "share") else "left", overflow="fold")
    for kernel in (k for k in found.kernels if k in slowest):
        share = kernel.seconds / whole if whole else 0.0
        made.add_row(kernel.name, kernel.kind, layer_of(kernel), show(kernel.seconds, "s"), f"{share:.1%}")
    return made


def own_summary(found: OwnProfile) -> list[str]:
    """What stands under the kernels, one sentence a line."""
    whole = sum(k.seconds for k in found.kernels)
    times = f"Whole network {show(found.latency.value, 's')}, measured apart; kernels {show(whole, 's')}."
    return [times, *found.notes]


def batches_table(points: Sequence[BatchPoint]) -> Table:
    """A row for each batch and number of threads; the knee of each number of threads, and what nothing beats."""
    from rich.table import Table

    front = pareto(points)
    made = Table(title="Throughput against latency")
    for name in ("batch", "threads", "runtime", "latency", "samples/s", "core time/sample", ""):
        made.add_column(name, justify="left" if name in ("runtime", "") else "right")
    for point in points:
        bend = knee([p for p in points if p.threads == point.threads])
        marks = [text for text, holds in (("knee", point == bend), ("on the front", point in front)) if holds]
        figures = (show(point["latency"], "s"), f"{point['throughput']:,.0f}", show(point["cost"], "s"))
        made.add_row(str(point.batch), str(point.threads), point.runtime, *figures, ", ".join(marks))
    return made


def _ridge(ceilings: Ceilings) -> str:
    return f"{ridge(ceilings.peak['fp32'].value, ceilings.levels[-1].bandwidth.value):.3g}"


def _cells(row: Row, found: Profile) -> tuple[str, ...]:
    achieved = row.achieved
    return (
        row.layer,
        f"{'+'.join(_short(row)) or row.kernel} {row.precision}",
        _count(row.parameters) if row.parameters else "",
        _count(row.macs) if row.macs else "",
        show(row.bytes, "byte") if row.bytes else "",
        f"{row.intensity:.1f}" if row.macs else "",
        show(row.seconds, "s"),
        f"{row.share:.1%}",
        row.bound or "",
        "" if achieved is None else f"{achieved:.0%}",
        advice(row, found.ceilings),
    )


def _short(row: Row) -> tuple[str, ...]:
    """The operators without the quantising ones that were fused into them."""
    plain = tuple(kind for kind in row.kinds if kind not in ("QuantizeLinear", "DequantizeLinear"))
    return plain or row.kinds


def _sum(name: str, some: Sequence[Row]) -> tuple[str, ...]:
    macs, moved = sum(row.macs for row in some), sum(row.bytes for row in some)
    return (
        name,
        "",
        _count(sum(row.parameters for row in some)),
        _count(macs),
        show(moved, "byte"),
        f"{macs / moved:.1f}" if moved else "",
        show(sum(row.seconds for row in some), "s"),
        f"{sum(row.share for row in some):.1%}",
        "",
        "",
        "",
    )


def _count(value: float) -> str:
    """`1.23 M`, `45.6 k`, `12`."""
    for scale, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value:.3g}"
