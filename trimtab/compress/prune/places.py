"""Places: where in the network a group's units are read, and where they are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.prune.units import Numbers, numbers
from trimtab.graph.coupling import Group, Member, couple
from trimtab.graph.macs import macs
from trimtab.graph.model import EXAMPLE_BATCH, Graph, shaped
from trimtab.graph.rules.ties import Labels, argument, shape

aten = torch.ops.aten
_EMBEDDINGS = (aten.embedding.default,)


@dataclass(frozen=True)
class Place:
    """A node whose value holds a group's units along one of its dimensions.

    Args:
        node: its name.
        dim: the dimension.
        units: for each index of the dimension its unit; the group's size where it is none of the group's.
        rows: the dimension that grows with the batch.
        layer: the name of the node that reads the value; the node's own where it is what made the units.
    """

    node: str
    dim: int
    units: tuple[int, ...]
    rows: int
    layer: str


@dataclass(frozen=True)
class Reading:
    """A weight dimension through which a layer reads a group's units: zeros there silence them.

    Args:
        layer: the name of the node.
        member: the weight, and which of its elements read each unit.
    """

    layer: str
    member: Member


def places(graph: Graph, groups: Sequence[Group], readers_only: bool = False) -> dict[str, tuple[Place, ...]]:
    """For each group where its units are read by a layer with weights, behind norm and activation.

    A group that no such layer reads (the inner width of queries and keys) has the places where its units are
    made, unless `readers_only`.

    Args:
        graph: the network.
        groups: of it.
        readers_only: leave those out.
    """
    own = tuple(groups)
    found = numbers(couple(graph), own)
    rows = _rows(graph)
    fixed = constant(graph)
    read: dict[str, dict[tuple[str, int, str], Place]] = {g.name: {} for g in own}
    made: dict[str, dict[tuple[str, int, str], Place]] = {g.name: {} for g in own}
    for node in graph.nodes():
        product = macs(node) > 0
        if not product and node.target not in _EMBEDDINGS:
            continue
        weights = [n for n in node.all_input_nodes if n in fixed and len(shape(n)) > 1]
        weighed = {i for n in weights for _, _, index in _dims(n, found) for i in index}
        entered: set[int] = set()
        for value in node.all_input_nodes:
            for dim, units, index in _dims(value, found) if product and value not in fixed else ():
                entered |= index
                _add(read, found, own, value, dim, units, index & weighed, rows, node)
        for dim, units, index in _dims(node, found):
            _add(made, found, own, node, dim, units, (index & weighed) - entered, rows, node)
    return {g.name: tuple((read[g.name] or ({} if readers_only else made[g.name])).values()) for g in own}


def _dims(node: Node, found: Numbers) -> Iterator[tuple[int, tuple[Labels, Labels], set[int]]]:
    """The dimensions of a node's tensor that hold units of the groups: group and unit of each index, which groups."""
    value = found.coupling.values.get(node, ())
    for dim, labels in enumerate(value if shape(node) else ()):
        if isinstance(labels, np.ndarray):
            group, unit = found.of(labels)
            index = set(np.unique(group[group >= 0]).tolist())
            if index:
                yield dim, (group, unit), index


def _add(
    into: dict[str, dict[tuple[str, int, str], Place]],
    found: Numbers,
    groups: Sequence[Group],
    node: Node,
    dim: int,
    units: tuple[Labels, Labels],
    which: set[int],
    rows: dict[str, int],
    layer: Node,
) -> None:
    for index in which if node.name in rows else ():
        group, unit = units
        own = np.where(group == index, unit, groups[index].size)
        place = Place(node.name, dim, tuple(own.tolist()), rows[node.name], layer.name)
        into[found.names[index]].setdefault((node.name, dim, layer.name), place)


def _rows(graph: Graph) -> dict[str, int]:
    """For each node whose shape depends on the batch, the first dimension that does."""
    larger = {n.name: shape(n) for n in shaped(graph.copy(), EXAMPLE_BATCH + 1).net.graph.nodes}
    found = {}
    for node in graph.net.graph.nodes:
        grown = [d for d, (a, b) in enumerate(zip(shape(node), larger[node.name], strict=True)) if a != b]
        if grown:
            found[node.name] = grown[0]
    return found


def constant(graph: Graph) -> set[Node]:
    """The nodes that depend on no input of the network: weights, and what is computed from them alone."""
    found: set[Node] = set()
    for node in graph.net.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and all(n in found for n in inputs)):
            found.add(node)
    return found


def readings(graph: Graph, groups: Sequence[Group]) -> dict[str, tuple[Reading, ...]]:
    """For each group the weights through which its units are read: columns of a linear layer, inputs of a convolution.

    Args:
        graph: the network.
        groups: of it.
    """
    coupling = couple(graph)
    parameters = dict(graph.net.named_parameters())
    makers = {(id(_tensor(graph, node)), dim) for node, dim in coupling.ties.producers}
    layers: dict[str, str] = {}
    for node in graph.nodes():
        if macs(node) > 0 and _ungrouped(node):
            for weight in node.all_input_nodes:
                if weight.op == "get_attr":
                    layers.setdefault(str(weight.target), node.name)
    return {
        g.name: tuple(
            Reading(layers[m.parameter], m)
            for m in g.members
            if m.parameter in layers
            and m.parameter in parameters
            and parameters[m.parameter].ndim > 1
            and (id(parameters[m.parameter]), m.dim) not in makers
        )
        for g in groups
    }


def _tensor(graph: Graph, node: Node) -> Tensor | None:
    return graph.tensors().get(str(node.target))


def _ungrouped(node: Node) -> bool:
    """Whether a product reads all of its inputs for each output: no grouped or depthwise convolution."""
    if "conv" not in str(node.target):
        return True
    return int(argument(node, 8 if node.target is aten.convolution.default else 6, "groups", 1)) == 1
