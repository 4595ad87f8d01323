"""Advice: what could make a layer cheaper, from the ceiling that binds it and where that ceiling would then lie."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.core.metric import show
from trimtab.hardware.roofline import Ceilings, bound
from trimtab.profile.row import Row

INT8, HALF = "int8", "half the channels"
FAR = 0.25
"""Share of its ceiling below which it is the kernel that holds a layer back, more than the machine."""
_LITTLE = 1.05
"""A gain up to this is none."""
_WIDTHS = {"fp32": 4, "int8": 1}
"""Bytes of one value."""


def gains(row: Row, ceilings: Ceilings) -> dict[str, float]:
    """How many times less time the layer's ceiling would allow, by technique.

        gain = least(macs, bytes) / least(macs', bytes')

    `int8`: the same multiply-adds at the integer peak, a quarter of the bytes. `half the channels`: multiply-adds and
    weights by 2^power, activations by 2. Both are bounds: the measured time need not follow its ceiling.

    Args:
        row: of a profile.
        ceilings: that the row was held against.
    """
    if row.bound is None or not row.macs:
        return {}
    found = {}
    if row.precision == "fp32" and row.parameters:
        found[INT8] = row.least / bound(ceilings, "int8", row.macs, row.bytes / 4).seconds
    if row.power:
        weights = min(row.parameters * _WIDTHS[row.precision], row.bytes)
        moved = weights / 2**row.power + (row.bytes - weights) / 2
        found[HALF] = row.least / bound(ceilings, row.precision, row.macs / 2**row.power, moved).seconds
    return found


def advice(row: Row, ceilings: Ceilings) -> str:
    """What could help, in one phrase: facts of the measured ceilings, the gain beside each technique.

    Args:
        row: of a profile.
        ceilings: that the row was held against.
    """
    if row.bound is None:
        return "give both sides one type and layout"
    if row.bound == "overhead":
        return f"remove or merge it: below the cost of a node ({show(ceilings.overhead.value, 's')})"
    if not row.macs:
        return f"fuse or remove it: it only moves {show(row.bytes, 'byte')}"
    far = "" if row.achieved is None or row.achieved >= FAR else "; far below its ceiling: another width or runtime"
    return _techniques(row, gains(row, ceilings)) + far


def _techniques(row: Row, found: Mapping[str, float]) -> str:
    told = [f"{name} {gain:.1f}x" for name, gain in found.items() if gain > _LITTLE]
    if row.precision == "int8" and row.parameters:
        told.insert(0, "already int8")
    if row.bound == "compute":
        return ", ".join(told) or "remove it"
    if row.power == 1 and row.parameters and found[HALF] > _LITTLE:
        told[-1] = f"fewer channels gain little: {told[-1]}, not 4x"
    weights = min(row.parameters * _WIDTHS[row.precision] / row.bytes, 1.0)
    if weights > 0.5:
        told.append(f"weights are {weights:.0%} of its bytes: larger batch, lower rank")
    return ", ".join(told) or f"fuse it: its {show(row.bytes, 'byte')} bind it"
