"""Ranks: where low rank pays on the target, layer by layer, by what the layers cost there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.compress.factorise.layers import Whole, chosen, wholes
from trimtab.compress.factorise.ranks import choices
from trimtab.compress.factorise.shapes import misfit, parts
from trimtab.compress.factorise.technique import NOTHING, Factorise, ranks_of
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.errors import NotRunnable
from trimtab.core.goal import Goal
from trimtab.core.metric import show
from trimtab.core.plan import Plan
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer
from trimtab.pipeline.deploy import example_inputs, write_point
from trimtab.pipeline.prepare import Prepared
from trimtab.pipeline.space import COSTS, LOW_RANK
from trimtab.pipeline.table import measure
from trimtab.run.device import Device

LARGE = 0.06
"""Share of a network's multiply-adds (or of its weights, where the size counts) from which on a layer is offered ranks:
what a smaller one can gain is less than what the table is off by."""
MOST = 12
"""Layers that are offered ranks, at most: each makes the survey longer."""
SHARES = (0.55, 0.3)
"""Of a layer's multiply-adds, for the ranks that are offered."""
CHEAPER = 0.95
"""Share of a layer's cost that its two layers may have at most to be offered."""
SECONDS = 1.5
"""That two whole networks are timed for."""
Rows = Mapping[tuple[Layer, str], Mapping[str, float]]


def ranks_worth(prepared: Prepared, goal: Goal, device: Device, precision: str) -> dict[str, list[int]]:
    """For the layers that are large enough, the ranks at which they cost less on the target, largest first.

    Less of anything that the goal bounds or minimises.

    Args:
        prepared: the task.
        goal: of the run.
        device: that layers are timed on.
        precision: that they are timed in.
    """
    layers = _large(prepared, asked(goal))
    offered = {name: choices(LOW_RANK, layer.shape, 8, SHARES) for name, layer in layers.items()}
    chains = {(name, r[0]): parts(LOW_RANK, layers[name].shape, r) for name, some in offered.items() for r in some}
    table = _table(prepared, device, {*_flat(chains.values()), *(layer.shape for layer in layers.values())})
    found: dict[str, list[int]] = {}
    for (name, rank), chain in chains.items():
        whole = costs_of((layers[name].shape,), table, precision)
        low = costs_of(chain, table, precision)
        if any(low[cost] <= CHEAPER * whole[cost] for cost in asked(goal) if whole.get(cost, 0.0) > 0):
            found.setdefault(name, []).append(rank)
    return found


def asked(goal: Goal) -> tuple[str, ...]:
    """The costs of layers that a goal bounds or minimises."""
    named = {goal.minimise, *goal.at_most, *(name.removesuffix("_ratio") for name in goal.at_least)}
    found = tuple(cost for cost in COSTS if cost in named)
    return found or ("latency",)


def costs_of(layers: Sequence[Layer], table: Rows, precision: str) -> dict[str, float]:
    """What layers cost together: what the table knows, `size` (weights, up to a factor) and `macs`."""
    names = table[layers[0], precision]
    sums = {name: sum(table[layer, precision][name] for layer in layers) for name in names}
    return {
        **sums,
        "size": float(sum(layer.weights for layer in layers)),
        "macs": float(sum(layer.macs for layer in layers)),
    }


def paying_layers(
    prepared: Prepared, technique: Factorise, graph: Graph, integer: bool
) -> tuple[Factorise | None, tuple[str, ...]]:
    """A resolved `Factorise` with only those layers that are faster so on the target, and a sentence for each other.

    Each layer is timed alone, whole and as its chain; then the network with those that are left beside the network
    without, and none are left where that is not faster.

    Args:
        prepared: the task.
        technique: with ranks.
        graph: the network that it comes to.
        integer: whether the network will be quantised.

    Returns: None where no layer is left.
    """
    if not technique.ranks:
        return None, (NOTHING,)
    known, _ = wholes(graph)
    device, method = prepared.device, technique.method
    precision = "int8" if integer and "int8" in device.precisions else device.precisions[0]
    chains = {
        name: parts(method, known[name].shape, ranks_of(method, known[name], given))
        for name, given in technique.ranks.items()
    }
    table = _table(prepared, device, {*_flat(chains.values()), *(known[name].shape for name in chains)})
    told, kept = [], {}
    for name, chain in chains.items():
        whole = table[known[name].shape, precision].get("latency")
        low = sum(table[layer, precision].get("latency", 0.0) for layer in chain)
        if whole is None or low < whole:
            kept[name] = technique.ranks[name]
            continue
        pair = f"{show(low, 's')} as {len(chain)} layers, {show(whole, 's')} whole"
        told.append(f"Factorise: {name} would not be faster on this target ({pair}): left whole.")
    left = Factorise(method, ranks=kept, aware=technique.aware) if kept else None
    if left is not None:
        slower = _slower(prepared, graph, left.apply(graph, prepared.context), integer)
        if slower is not None:
            return None, (*told, slower)
    return left, tuple(told)


def _large(prepared: Prepared, costs: Sequence[str]) -> dict[str, Whole]:
    """The layers that are worth ranks, at most `MOST`, in the network's order."""
    graph, context = prepared.graph, prepared.context
    known, _ = wholes(graph)
    free = chosen(known, graph, context, (), ())
    all_macs = sum(layer.shape.macs for layer in known.values())
    all_weights = sum(layer.shape.weights for layer in known.values())

    def share(layer: Whole) -> float:
        of = [layer.shape.macs / max(all_macs, 1)]
        return max([*of, layer.shape.weights / max(all_weights, 1)] if "size" in costs else of)

    fine = [
        name
        for name, layer in free.items()
        if layer.weight == f"{name}.weight" and misfit(LOW_RANK, layer.shape) is None and share(layer) >= LARGE
    ]
    first = sorted(fine, key=lambda name: -share(free[name]))[:MOST]
    return {name: free[name] for name in free if name in first}


def _slower(prepared: Prepared, whole: Graph, low: Graph, integer: bool) -> str | None:
    """A sentence where a network of low rank is not faster than the whole one beside it, by the bounds of both."""
    context, target = prepared.context, prepared.context.target
    networks = {"whole": whole, "low": low}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, graph in networks.items():
            made = Quantise().apply(graph, context) if integer else graph
            files[name] = write_point(made, Plan(), Path(folder) / name)
        try:
            inputs = example_inputs(whole, target.batch)
            clocked = prepared.device.clock(files["whole"], files, target, inputs, SECONDS)
        except NotRunnable:
            return None  # the target cannot run the whole network: nothing to be slower than
    times = {name: clocked[name].metrics["latency"] for name in networks}
    ratio = clocked["low"].metrics.get("latency_ratio")
    gained = ratio.value if ratio is not None else times["whole"].value / times["low"].value
    bound = ratio.interval[0] if ratio is not None and ratio.interval else gained
    if bound > 1:
        return None
    a, b = (show(times[name].value, "s") for name in ("low", "whole"))
    return f"Factorise did not make the network faster ({a} with it, {b} without): dropped."


def _table(prepared: Prepared, device: Device, shapes: Iterable[Layer]) -> dict[tuple[Layer, str], dict[str, Any]]:
    return measure(shapes, device, prepared.context.target, device.version())


def _flat(chains: Iterable[Sequence[Layer]]) -> set[Layer]:
    return {layer for chain in chains for layer in chain}
