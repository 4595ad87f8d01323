"""The space of a trained network: its sites, and how a point of it becomes a plan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from trimtab.compress.allocate import Assignment, Factor
from trimtab.compress.factorise.shapes import limits, macs, parts
from trimtab.compress.prune.blocks import RemoveBlocks
from trimtab.compress.prune.channels import Prune
from trimtab.compress.prune.scores import unit_scores
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Context
from trimtab.core.plan import Plan
from trimtab.core.space import Axis
from trimtab.graph.blocks import Block, blocks
from trimtab.graph.coupling import Group, groups
from trimtab.graph.model import Graph
from trimtab.hardware.layer import Layer
from trimtab.run.shapes import layers

SHARES = (0.75, 0.5, 0.25)
"""Of a width, to choose from."""

BITS = {"int8": 8, "int4": 4, "int2": 2}
"""Bits of a weight on disk at each integer precision of an axis; those below 8 are computed as int8."""
STORED = ("int4",)
"""Precisions of weights on disk alone, offered where the goal asks for a small file. Two bits: not measured yet."""

LOW_RANK = "svd"
"""The method of `Factorise` whose ranks are chosen together with widths: two layers, of which any may be quantised."""

COSTS = ("latency", "energy", "size", "macs")
COMBINATIONS = 3000
"""A layer between more combinations of widths than this is costed at the full width of the others."""


@dataclass(frozen=True)
class Space:
    """What can be chosen in a trained network.

    Axes are those that the techniques find, `Prune:<group>`, `RemoveBlocks:<block>`, `Factorise:<layer>` and
    `Quantise:<layer>`, with the network as it is for their first choice: units kept of a group, whether a block
    is removed, the rank of a layer (None where it stays whole), and `fp32`, `int8` or a precision of `STORED` for
    a layer. A layer is whole too where its rank gives no fewer multiply-adds at its chosen widths.

    Args:
        axes: one for each group that can be cut, removable block, and quantisable layer.
        order: for each group its units, most important first.
        groups: the groups, by name.
        blocks: the blocks, by name.
        layers: the layers that the latency table knows, by the name of their weight.
        precisions: that the device computes in, the network's own first.
    """

    axes: tuple[Axis, ...]
    order: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, Group]
    blocks: Mapping[str, Block]
    layers: Mapping[str, Layer]
    precisions: tuple[str, ...] = ("fp32", "int8")

    def steps(self, point: Assignment) -> list[dict[str, Any]]:
        """The structural steps and the quantisation of a point, as plan steps; decisions only."""
        chosen = {axis.name: axis.choices[point[axis.name]] for axis in self.axes}
        removed = [name for name in self.blocks if chosen.get(f"RemoveBlocks:{name}")]
        gone = {p for name in removed for p in self.blocks[name].parameters}
        keep = {}
        for name, group in self.groups.items():
            count = chosen.get(f"Prune:{name}", group.size)
            members = [m for m in group.members if m.parameter not in gone]
            if count < group.size and members:
                first = f"{members[0].parameter}:{members[0].dim}"
                keep[first if removed else name] = sorted(self.order[name][:count])
        steps: list[dict[str, Any]] = []
        if removed:
            steps.append({"technique": "RemoveBlocks", "blocks": removed})
        if keep:
            steps.append({"technique": "Prune", "keep": keep})
        ranks = {
            layer_of(w): rank for w in self.layers if w not in gone and (rank := self._rank(w, chosen)) is not None
        }
        if ranks:
            steps.append({"technique": "Factorise", "ranks": ranks, "aware": True})
        left = {layer_of(w): str(chosen.get(f"Quantise:{layer_of(w)}")) for w in self.layers if w not in gone}
        if any(p in BITS for p in left.values()):
            skip = sorted(name for name, p in left.items() if p == "fp32")
            few = {name: {"bits": BITS[p]} for name, p in sorted(left.items()) if BITS.get(p, 8) < 8}
            # a range of least squared error cuts off what is largest, which moves sums of inputs that have one sign
            low = {"layers": few, "calibration": "mse", "correct": True} if few else {}
            steps.append({"technique": "Quantise", **({"skip": skip} if skip else {}), **low})
        return steps

    def _rank(self, weight: str, chosen: Mapping[str, Any]) -> int | None:
        """The rank that a layer gets; None where it stays whole."""
        rank: int | None = chosen.get(f"Factorise:{layer_of(weight)}")
        if rank is None:
            return None
        found, _ = _at(self, weight, {site: chosen[site] for site in _touching(self, weight)})
        return rank if len(found) > 1 else None

    def plan(self, point: Assignment) -> Plan:
        """The plan of a point, without training."""
        return Plan(tuple(self.steps(point)))


def space_of(
    graph: Graph,
    context: Context,
    precisions: Sequence[str] = ("fp32", "int8"),
    stored: Sequence[str] = (),
    ranks: Mapping[str, Sequence[int]] | None = None,
) -> Space:
    """The space of a trained network: the sites of `Prune`, `RemoveBlocks` and `Quantise`, a few widths of each.

    Args:
        graph: the captured original.
        context: of the run.
        precisions: that the device computes in, the network's own first.
        stored: further precisions of weights on disk, some of `STORED`, where the file's size counts.
        ranks: for the name of a layer, the ranks to choose from, largest first (`ranks.ranks_worth`).
    """
    known = {g.name: g for g in groups(graph, context.task.keep)}
    found = {b.name: b for b in blocks(graph)}
    axes = [_thinned(axis) for axis in Prune(ratio=0.5).sites(graph, context)]
    free = {axis.name.partition(":")[2]: known[axis.name.partition(":")[2]] for axis in axes}
    removable = list(RemoveBlocks(blocks=()).sites(graph, context))
    disjoint = _disjoint([found[a.name.partition(":")[2]] for a in removable])
    axes += [a for a in removable if a.name.partition(":")[2] in {b.name for b in disjoint}]
    timed = layers(graph)
    axes += [Axis(f"Factorise:{name}", (None, *given), ordered=True) for name, given in (ranks or {}).items()]
    if context.target.precision == "int8":
        axes += [
            Axis(a.name, (*precisions, *stored))
            for a in Quantise().sites(graph, context)
            if f"{a.name.partition(':')[2]}.weight" in timed
        ]
    scores = unit_scores(graph, list(free.values()), "l2", context)
    order = {name: tuple(torch.sort(scores[name], descending=True, stable=True).indices.tolist()) for name in free}
    return Space(tuple(axes), order, free, {b.name: b for b in disjoint}, timed, tuple(precisions))


def _thinned(axis: Axis) -> Axis:
    """The whole width, and of the others those nearest to 3/4, 1/2 and 1/4, largest first."""
    size = max(axis.choices)
    less = [n for n in axis.choices if n < size]
    near = {min(less, key=lambda n: abs(n - share * size)) for share in SHARES} if less else set()
    return Axis(axis.name, (size, *sorted(near, reverse=True)), ordered=True)


def _disjoint(blocks: Sequence[Block]) -> list[Block]:
    """The outermost of nested blocks: blocks that share no parameter."""
    taken: set[str] = set()
    found = []
    for block in sorted(blocks, key=lambda b: -len(b.nodes)):
        if not taken & set(block.parameters):
            taken |= set(block.parameters)
            found.append(block)
    return [b for b in blocks if b in found]


@dataclass(frozen=True)
class Rest:
    """What the sum over layers leaves out, from measuring whole networks.

    Args:
        scale: from the sum of the table to the whole network, by cost (`latency`, `energy`).
        seconds: that no layer accounts for.
        layer_bytes: of the file for each layer, beside its weights.
        file_bytes: of the file that no layer accounts for.
    """

    scale: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    layer_bytes: float = 0.0
    file_bytes: float = 0.0


def factors(space: Space, table: Mapping[tuple[Layer, str], Mapping[str, float]], rest: Rest) -> list[Factor]:
    """What every combination of choices costs: `latency` in s, `energy` in J, `size` in bytes, `macs`, by layer.

    Args:
        space: the space.
        table: what each layer costs; it holds every layer that `shapes` names.
        rest: what the layers do not account for.
    """
    found = []
    for weight in space.layers:
        sites = _sites(space, weight)
        counts = [space_axis(space, s).choices for s in sites]
        shape = tuple(len(c) for c in counts)
        costs = {name: np.zeros(shape) for name in COSTS}
        for index in itertools.product(*map(range, shape)):
            chosen = {s: c[i] for s, c, i in zip(sites, counts, index, strict=True)}
            made, precision = _at(space, weight, chosen)
            for layer in made:
                for name, value in table[layer, computed(precision)].items():
                    costs[name][index] += rest.scale.get(name, 1.0) * value
                costs["size"][index] += layer.weights * BITS.get(precision, 32) / 8 + rest.layer_bytes
                costs["macs"][index] += layer.macs
        found.append(Factor(tuple(sites), costs))
    anchor = space.axes[0].name if space.axes else None
    if anchor is not None:
        n = len(space.axes[0].choices)
        found.append(Factor((anchor,), {"latency": np.full(n, rest.seconds), "size": np.full(n, rest.file_bytes)}))
    return found


def shapes(space: Space) -> set[Layer]:
    """Every layer that some point of the space has: what the latency table must know."""
    found = set()
    for weight in space.layers:
        sites = _sites(space, weight)
        for values in itertools.product(*(space_axis(space, s).choices for s in sites)):
            found |= set(_at(space, weight, dict(zip(sites, values, strict=True)))[0])
    return found


def computed(precision: str) -> str:
    """What a layer computes in whose weight is kept at a precision: few bits on disk are int8 once loaded."""
    return "int8" if precision in BITS else precision


def layer_of(weight: str) -> str:
    """A layer's name, from its weight's."""
    return weight.rpartition(".")[0] or weight


def space_axis(space: Space, name: str) -> Axis:
    """An axis by name."""
    return next(a for a in space.axes if a.name == name)


def _sites(space: Space, weight: str) -> list[str]:
    """The axes that a layer's cost depends on, cut to COMBINATIONS by leaving out the widest."""
    names = {a.name: a for a in space.axes}
    found = _touching(space, weight)
    while np.prod([len(names[n].choices) for n in found], dtype=int) > COMBINATIONS:
        found.remove(max((n for n in found if n.startswith("Prune:")), key=lambda n: len(names[n].choices)))
    return found


def _touching(space: Space, weight: str) -> list[str]:
    """The axes that a layer's cost depends on."""
    names = {a.name for a in space.axes}
    found = []
    for name, group in space.groups.items():
        if any(m.parameter == weight and any(m.indices) for m in group.members):
            found.append(f"Prune:{name}")
    for name, block in space.blocks.items():
        if weight in block.parameters:
            found.append(f"RemoveBlocks:{name}")
    return found + [n for n in (f"Factorise:{layer_of(weight)}", f"Quantise:{layer_of(weight)}") if n in names]


def _at(space: Space, weight: str, chosen: Mapping[str, Any]) -> tuple[tuple[Layer, ...], str]:
    """What a layer becomes under choices of its axes, and its precision: two layers at a rank, none once removed."""
    layer, precision = space.layers[weight], space.precisions[0]
    rank: int | None = None
    lost = [0, 0]
    for name, value in chosen.items():
        kind, _, site = name.partition(":")
        if kind == "RemoveBlocks" and value:
            return (), precision
        if kind == "Factorise":
            rank = value
        if kind == "Quantise":
            precision = value
        if kind == "Prune":
            gone = space.order[site][value:]
            for member in space.groups[site].members:
                if member.parameter == weight and member.dim < 2:
                    lost[member.dim] += sum(len(member.indices[u]) for u in gone)
    shape = _cut(layer, lost)
    lower = rank is not None and rank <= limits(LOW_RANK, shape)[0] and macs(LOW_RANK, shape, (rank,)) < shape.macs
    return (parts(LOW_RANK, shape, (rank or 0,)) if lower else (shape,)), precision


def _cut(layer: Layer, lost: Sequence[int]) -> Layer:
    """A layer without so many of its outputs and inputs."""
    if layer.groups == 1:
        return replace(layer, inputs=layer.inputs - lost[1], outputs=layer.outputs - lost[0])
    # A grouped convolution loses whole groups: its inputs shrink with its outputs.
    left = (layer.outputs - lost[0]) / layer.outputs
    count = max(round(layer.groups * left), 1)
    return replace(layer, inputs=layer.inputs // layer.groups * count, outputs=layer.outputs - lost[0], groups=count)
