"""Survey: what the choices in a trained network cost, in time on the target and in loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.compress.allocate import Factor, Site
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.hardware.layer import Layer
from trimtab.pipeline.deploy import FILES
from trimtab.pipeline.devices import held_to
from trimtab.pipeline.points import is_integer
from trimtab.pipeline.prepare import Prepared, settled
from trimtab.pipeline.ranks import ranks_worth
from trimtab.pipeline.sensitivity import refunds, sensitivities
from trimtab.pipeline.space import STORED, Rest, Space, factors, shapes, space_of
from trimtab.pipeline.table import measure
from trimtab.run.device import Clocked
from trimtab.run.runtime import onnx_files


@dataclass(frozen=True)
class Survey:
    """The space of a network with its costs.

    Args:
        space: its sites.
        sites: the loss of each choice.
        factors: the cost of each combination, scaled to whole networks.
        runtime: the one that the costs are for.
        error: relative error of the table's sum against the measured network, before scaling.
    """

    space: Space
    sites: tuple[Site, ...]
    factors: tuple[Factor, ...]
    runtime: str
    error: float


def asks_for_size(goal: Goal) -> bool:
    """Whether a goal bounds or minimises the size of the file: only then are few bits on disk worth a survey."""
    return "size" in (goal.minimise, *goal.at_most) or "size_ratio" in goal.at_least


def survey(prepared: Prepared, goal: Goal, whole: Plan, clocked: Clocked, file: Path) -> Survey:
    """Measure the latency table and the sensitivities of a network.

    Args:
        prepared: the task.
        goal: of the run.
        whole: the plan of the network in its full size at the target's precision.
        clocked: that network's measured latency.
        file: that network's file.
    """
    context = prepared.context
    stored = STORED if packed(prepared, file) and asks_for_size(goal) else ()
    # What the clock says is settled here: a resumed run works with the table of its first start.
    said = settled(prepared, "whole", lambda: {"in": clocked.runtime, **_values(clocked)})
    device = held_to(prepared.device, said["in"])
    precision = "int8" if is_integer(whole) else "fp32"
    ranks = settled(prepared, "ranks", lambda: ranks_worth(prepared, goal, device, precision))
    space = space_of(prepared.graph, context, prepared.device.precisions, stored, ranks)
    found = shapes(space)
    context.progress("latency table", 0, len(found))
    rows = settled(prepared, "table", lambda: _rows(measure(found, device, context.target, device.version())))
    table = {(layer, p): rows[str((layer, p))] for layer in found for p in device.precisions}
    context.progress("latency table", len(found), len(found))
    sums = {
        name: sum(table[layer, precision].get(name, 0.0) for layer in space.layers.values())
        for name in ("latency", "energy")
    }
    rest = _rest(space, sums, said, file, precision)
    sites, moot = refunds(space, sensitivities(space, prepared.graph, context, prepared.key))
    costs = factors(space, table, rest)
    return Survey(space, tuple(sites), tuple(costs + moot), said["in"], sums["latency"] / said["latency"] - 1)


def packed(prepared: Prepared, file: Path) -> bool:
    """Whether the device reads files of ours, in which weights of few bits are packed, and none of its own make."""
    ours = {*onnx_files(file), *(file.with_name(name) for name in FILES)}
    return set(prepared.device.artifact(file)) <= ours


def _values(clocked: Clocked) -> dict[str, float]:
    return {name: m.value for name, m in clocked.metrics.items() if name in ("latency", "energy")}


def _rows(table: dict[tuple[Layer, str], dict[str, float]]) -> dict[str, dict[str, float]]:
    return {str(key): value for key, value in table.items()}


def _rest(space: Space, sums: Mapping[str, float], said: Mapping[str, Any], file: Path, precision: str) -> Rest:
    """All is scaled to what the whole network costs; where no layer is known, that is all the rest."""
    weights = sum(layer.weights for layer in space.layers.values()) * (1 if precision == "int8" else 4)
    each = max(file.stat().st_size - weights, 0) / max(len(space.layers), 1)
    if sums["latency"] <= 0:
        return Rest(seconds=said["latency"], layer_bytes=each)
    return Rest({n: said[n] / total for n, total in sums.items() if total > 0 and n in said}, layer_bytes=each)
