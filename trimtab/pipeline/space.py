"""The space of a trained network: its sites, and how a point of it becomes a plan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.core.plan import Plan
from trimtab.core.space import Axis
from trimtab.graph.blocks import Block
from trimtab.graph.coupling import Group
from trimtab.pipeline.allocate import Assignment, Factor
from trimtab.pipeline.table import PRECISIONS, Layer

COMBINATIONS = 3000
"""A layer between more combinations of widths than this is costed at the full width of the others."""


@dataclass(frozen=True)
class Space:
    """What can be chosen in a trained network.

    Choices count what is left: units kept of a group, True or False for a block to stay, and
    `int8` or `fp32` for a layer. The first choice of each axis is the network as it is.

    Args:
        axes: one for each group that can be cut, removable block, and quantisable layer.
        order: for each group its units, most important first.
        groups: the groups, by name.
        blocks: the blocks, by name.
        layers: the layers that the latency table knows, by the name of their weight.
    """

    axes: tuple[Axis, ...]
    order: Mapping[str, tuple[int, ...]]
    groups: Mapping[str, Group]
    blocks: Mapping[str, Block]
    layers: Mapping[str, Layer]

    def kinds(self, axis: Axis) -> str:
        """`width`, `block` or `precision`."""
        return axis.name.split(" ", 1)[0]

    def steps(self, point: Assignment) -> list[dict[str, Any]]:
        """The structural steps and the quantisation of a point, as plan steps; decisions only."""
        chosen = {axis.name: axis.choices[point[axis.name]] for axis in self.axes}
        removed = [name for name in self.blocks if chosen.get(f"block {name}") is False]
        gone = {p for name in removed for p in self.blocks[name].parameters}
        keep = {}
        for name, group in self.groups.items():
            count = chosen.get(f"width {name}", group.size)
            left = [m for m in group.members if m.parameter not in gone]
            if count < group.size and left:
                first = f"{left[0].parameter}:{left[0].dim}"
                keep[first if removed else name] = sorted(self.order[name][:count])
        steps: list[dict[str, Any]] = []
        if removed:
            steps.append({"technique": "RemoveBlocks", "blocks": removed})
        if keep:
            steps.append({"technique": "Prune", "keep": keep})
        precisions = {w: chosen.get(f"precision {w}") for w in self.layers if w not in gone}
        if any(p == "int8" for p in precisions.values()):
            skip = sorted(w.removesuffix(".weight") for w, p in precisions.items() if p == "fp32")
            steps.append({"technique": "Quantise", **({"skip": skip} if skip else {})})
        return steps

    def plan(self, point: Assignment) -> Plan:
        """The plan of a point, without training."""
        return Plan(tuple(self.steps(point)))


def space_of(
    groups: Sequence[Group],
    blocks: Sequence[Block],
    layers: Mapping[str, Layer],
    order: Mapping[str, tuple[int, ...]],
    integer: Sequence[str],
    multiple: int = 8,
) -> Space:
    """The space of a network.

    Args:
        groups: its coupled channels; those with a reason stay whole.
        blocks: its removable blocks.
        layers: its layers, by the name of their weight.
        order: for each group its units, most important first.
        integer: names of weights that may be int8.
        multiple: kept widths are multiples of it.
    """
    free = {g.name: g for g in groups if g.reason is None and len(widths(g.size, multiple)) > 1}
    axes = [Axis(f"width {name}", widths(g.size, multiple), ordered=True) for name, g in free.items()]
    axes += [Axis(f"block {b.name}", (True, False)) for b in _disjoint(blocks)]
    axes += [Axis(f"precision {w}", PRECISIONS) for w in layers if w in integer]
    kept = {b.name: b for b in _disjoint(blocks)}
    return Space(tuple(axes), order, free, kept, layers)


def widths(size: int, multiple: int) -> tuple[int, ...]:
    """Counts of units to choose from, largest first: the whole, and about 3/4, 1/2, 3/8 and 1/4, rounded to `multiple`."""
    if size < 2 * multiple:
        rounded = {max(size // 2, 1)} if size > 1 else set()
    else:
        rounded = {max(round(size * share / multiple), 1) * multiple for share in (0.75, 0.5, 0.375, 0.25)}
    return (size, *sorted((n for n in rounded if n < size), reverse=True))


def _disjoint(blocks: Sequence[Block]) -> list[Block]:
    """The outermost of nested blocks: blocks that share no parameter."""
    taken: set[str] = set()
    found = []
    for block in sorted(blocks, key=lambda b: -len(b.nodes)):
        if not taken & set(block.parameters):
            taken |= set(block.parameters)
            found.append(block)
    return [b for b in blocks if b in found]


def factors(space: Space, seconds: Mapping[tuple[Layer, str], float], scale: float, rest: float) -> list[Factor]:
    """What every combination of choices costs: `latency` in seconds and `size` in bytes, layer by layer.

    Args:
        space: the space.
        seconds: the latency table; it holds every layer that `shapes` names.
        scale: from the sum of the table to the measured whole network.
        rest: seconds of the whole network that no layer accounts for.
    """
    found = []
    for weight in space.layers:
        sites = _sites(space, weight)
        counts = [space_axis(space, s).choices for s in sites]
        shape = tuple(len(c) for c in counts)
        latency, size = np.zeros(shape), np.zeros(shape)
        for index in itertools.product(*map(range, shape)):
            chosen = {s: c[i] for s, c, i in zip(sites, counts, index, strict=True)}
            layer, precision = _at(space, weight, chosen)
            if layer is not None:
                latency[index] = scale * seconds[layer, precision]
                size[index] = layer.weights * (1 if precision == "int8" else 4) + layer.outputs * 8
        found.append(Factor(tuple(sites), {"latency": latency, "size": size}))
    anchor = space.axes[0].name if space.axes else None
    if anchor is not None:
        found.append(Factor((anchor,), {"latency": np.full(len(space.axes[0].choices), rest)}))
    return found


def shapes(space: Space) -> set[Layer]:
    """Every layer that some point of the space has: what the latency table must know."""
    found = set()
    for weight in space.layers:
        sites = _sites(space, weight)
        for values in itertools.product(*(space_axis(space, s).choices for s in sites)):
            layer, _ = _at(space, weight, dict(zip(sites, values, strict=True)))
            if layer is not None:
                found.add(layer)
    return found


def space_axis(space: Space, name: str) -> Axis:
    """An axis by name."""
    return next(a for a in space.axes if a.name == name)


def _sites(space: Space, weight: str) -> list[str]:
    """The axes that a layer's cost depends on, cut to COMBINATIONS by leaving out the widest."""
    names = {a.name: a for a in space.axes}
    found = []
    for name, group in space.groups.items():
        if any(m.parameter == weight and any(m.indices) for m in group.members) and f"width {name}" in names:
            found.append(f"width {name}")
    for name, block in space.blocks.items():
        if weight in block.parameters:
            found.append(f"block {name}")
    if f"precision {weight}" in names:
        found.append(f"precision {weight}")
    while np.prod([len(names[n].choices) for n in found], dtype=int) > COMBINATIONS:
        found.remove(max((n for n in found if n.startswith("width ")), key=lambda n: len(names[n].choices)))
    return found


def _at(space: Space, weight: str, chosen: Mapping[str, Any]) -> tuple[Layer | None, str]:
    """A layer's shape and precision under choices of its axes; None where its block is removed."""
    layer, precision = space.layers[weight], "fp32"
    lost = [0, 0]
    for name, value in chosen.items():
        kind, _, site = name.partition(" ")
        if kind == "block" and value is False:
            return None, precision
        if kind == "precision":
            precision = value
        if kind == "width":
            gone = space.order[site][value:]
            for member in space.groups[site].members:
                if member.parameter == weight and member.dim < 2:
                    lost[member.dim] += sum(len(member.indices[u]) for u in gone)
    if layer.groups == 1:
        return replace(layer, inputs=layer.inputs - lost[1], outputs=layer.outputs - lost[0]), precision
    # A grouped convolution loses whole groups: its inputs shrink with its outputs.
    left = (layer.outputs - lost[0]) / layer.outputs
    count = max(round(layer.groups * left), 1)
    return (
        replace(layer, inputs=layer.inputs // layer.groups * count, outputs=layer.outputs - lost[0], groups=count),
        precision,
    )
