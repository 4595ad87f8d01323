"""Survey: what the choices in a trained network cost, in time on the target and in loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.core.plan import Plan
from trimtab.hardware.machine import machine
from trimtab.pipeline.allocate import Factor, Site
from trimtab.pipeline.deploy import Clocked
from trimtab.pipeline.prepare import Prepared, settled
from trimtab.pipeline.sensitivity import refunds, sensitivities
from trimtab.pipeline.space import Rest, Space, factors, shapes, space_of
from trimtab.pipeline.table import PRECISIONS, Layer, measure
from trimtab.run import runtime


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


def survey(prepared: Prepared, whole: Plan, clocked: Clocked, file: Path) -> Survey:
    """Measure the latency table and the sensitivities of a network.

    Args:
        prepared: the task.
        whole: the plan of the network in its full size at the target's precision.
        clocked: that network's measured latency.
        file: that network's file.
    """
    context = prepared.context
    space = space_of(prepared.graph, context)
    found = shapes(space)
    # What the clock says is settled here: a resumed run works with the table of its first start.
    said = settled(prepared, "whole", lambda: {"in": clocked.runtime, "s": clocked.metrics["latency"].value})
    identity = f"{machine().key()} {runtime(said['in']).version()}"
    context.progress("latency table", 0, len(found))
    rows = settled(prepared, "table", lambda: _rows(measure(found, context.target, said["in"], identity)))
    seconds = {(layer, p): rows[str((layer, p))] for layer in found for p in PRECISIONS}
    context.progress("latency table", len(found), len(found))
    precision = "int8" if any(s["technique"] == "Quantise" for s in whole.steps) else "fp32"
    total = sum(seconds[layer, precision] for layer in space.layers.values())
    rest = _rest(space, total, said["s"], file, precision)
    sites, moot = refunds(space, sensitivities(space, prepared.graph, context, prepared.key))
    costs = factors(space, seconds, rest)
    return Survey(space, tuple(sites), tuple(costs + moot), said["in"], total / said["s"] - 1)


def _rows(seconds: dict[tuple[Layer, str], float]) -> dict[str, float]:
    return {str(key): value for key, value in seconds.items()}


def _rest(space: Space, total: float, latency: float, file: Path, precision: str) -> Rest:
    """Where the table sums to less than the network, the difference is shared by its layers; else all is scaled."""
    weights = sum(layer.weights for layer in space.layers.values()) * (1 if precision == "int8" else 4)
    each = max(file.stat().st_size - weights, 0) / max(len(space.layers), 1)
    if total <= 0:
        return Rest(seconds=latency, layer_bytes=each)
    return Rest(scale=latency / total, layer_bytes=each)
