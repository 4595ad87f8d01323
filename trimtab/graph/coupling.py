"""Coupled channels: which indices of which parameters must be removed together."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.model import Graph
from trimtab.graph.rules import rule
from trimtab.graph.rules.ties import Labels, Ties, Value, shape


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer that a group reaches.

    Args:
        parameter: its name.
        dim: the dimension.
        indices: for each unit of the group, the indices that go with it (several where a channel
            becomes a run, as in flattened pixels or an attention head; none where it is absent).
    """

    parameter: str
    dim: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Units that can be removed one by one, each with everything that must go with it.

    Units are in one group when the same layers make them (two layers joined by an addition make
    their channels together). So a group that keeps one unit leaves no layer without channels, and
    a layer's width is the sum of its groups'.

    Args:
        name: the first parameter and dimension it reaches, in the order of use: `layer1.0.conv1.weight:0`;
            a second group that starts there is `layer1.0.conv1.weight:0/2`.
        size: the number of units.
        members: what it reaches.
        reason: `None` if it can be cut, else why it is left whole.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Coupling:
    """Labels of every node's result, and the units that stand behind each group.

    Args:
        values: the labels of each node of the graph.
        ties: which labels are one.
        groups: the groups.
        units: for each group's name, the label that stands for each of its units.
    """

    values: dict[Node, Value]
    ties: Ties
    groups: tuple[Group, ...]
    units: dict[str, Labels]


def groups(graph: Graph, fixed: Collection[str] = ()) -> tuple[Group, ...]:
    """The groups of coupled channels of a graph, in the order in which it uses them.

    Args:
        graph: the network.
        fixed: names of layers or parameters to keep whole: exact, a prefix (`layer1`), or a pattern
            (`layer?.*.conv2.weight`).
    """
    return tuple(_fixed(group, fixed) for group in couple(graph).groups)


def _fixed(group: Group, fixed: Collection[str]) -> Group:
    for name in fixed:
        for member in group.members:
            inside = member.parameter == name or member.parameter.startswith(f"{name}.")
            if group.reason is None and (inside or fnmatchcase(member.parameter, name)):
                return Group(group.name, group.size, group.members, f"{member.parameter} is to be kept whole ({name})")
    return group


def couple(graph: Graph) -> Coupling:
    """Propagate labels through the graph once, and collect the units that belong together."""
    ties = Ties()
    tensors: dict[int, tuple[Labels | None, ...]] = {}
    sources: dict[str, Node] = {}
    for node in graph.net.graph.nodes:
        if node.op == "get_attr" and isinstance(node.meta.get("val"), torch.Tensor):
            tensor = attribute(graph.net, str(node.target))
            if id(tensor) not in tensors:
                tensors[id(tensor)] = tuple(ties.fresh(n) if n > 1 else None for n in tensor.shape)
                sources[str(node.target)] = node
            ties.values[node] = tensors[id(tensor)]
        elif node.op == "call_function":
            ties.values[node] = _apply(ties, node)
        elif node.op == "output":
            for value, name in zip(node.args[0], graph.outputs, strict=True):
                for labels in ties.of(value):
                    ties.pin(labels, f"it is the network's output {name!r}")
    found, units = _collect(graph, ties, _by_use(graph, sources))
    return Coupling(ties.values, ties, found, units)


def attribute(module: Any, name: str) -> Any:
    """A parameter, buffer or submodule by its dotted name."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _apply(ties: Ties, node: Node) -> Value:
    known = rule(node.target)
    if known is not None:
        return known.label(ties, node)
    for arg in node.all_input_nodes:
        for value in _each(ties.values.get(arg, ())):
            ties.pin(value, f"{node.target} ({node.name}) has no rule for cutting")
    return (None,) * len(shape(node))


def _each(value: Value) -> Iterator[Labels]:
    for part in value:
        if isinstance(part, tuple):
            yield from _each(part)
        elif part is not None:
            yield part


def _by_use(graph: Graph, sources: dict[str, Node]) -> dict[str, Node]:
    """Parameters and buffers in the order in which the network first uses them, parameters before buffers."""
    order = {node: i for i, node in enumerate(graph.net.graph.nodes)}
    parameters = dict(graph.net.named_parameters())

    def first(name: str) -> tuple[bool, int, int]:
        node = sources[name]
        return name not in parameters, min((order[u] for u in node.users), default=len(order)), order[node]

    return {name: sources[name] for name in sorted(sources, key=first)}


def _collect(graph: Graph, ties: Ties, sources: dict[str, Node]) -> tuple[tuple[Group, ...], dict[str, Labels]]:
    """Sort the units into groups by the layers that make them and the reason to keep them, if any."""
    count = len(ties)
    places = [
        (name, dim, ties.find(labels))
        for name, node in sources.items()
        for dim, labels in enumerate(ties.of(node))
        if labels is not None
    ]
    hidden = np.zeros(count, dtype=bool)
    for labels in ties.hidden:
        hidden[ties.find(labels)] = True
    reason = np.full(count, -1)
    for at, (labels, _) in enumerate(reversed(ties.pins)):
        reason[ties.find(labels)] = len(ties.pins) - 1 - at
    places = [(name, dim, roots) for name, dim, roots in places if not hidden[roots].any()]
    made = _signatures(count, ties, sources, places)
    sentences = list(dict.fromkeys(why for _, why in ties.pins))
    place = {why: at for at, why in enumerate(sentences)}
    number = np.array([place[why] for _, why in ties.pins] + [-1])
    keys: dict[tuple[int, int], list[Labels]] = {}
    seen = np.zeros(count, dtype=bool)
    for _, _, roots in places:
        fresh = roots[~seen[roots]]
        new = fresh[np.sort(np.unique(fresh, return_index=True)[1])]
        seen[new] = True
        for key in dict.fromkeys(zip(made[new].tolist(), number[reason[new]].tolist(), strict=True)):
            keys.setdefault(key, []).append(new[(made[new] == key[0]) & (number[reason[new]] == key[1])])
    parameters = dict(graph.net.named_parameters())
    return _groups(keys, sentences, places, parameters)


def _signatures(count: int, ties: Ties, sources: dict[str, Node], places: list[Any]) -> Labels:
    """A number for each unit that is equal for units that the same layers make."""
    random = np.random.default_rng(0).integers(1, 2**40, size=len(places) + len(ties.parts))
    producers = {(id(ties.values[node]), dim) for node, dim in ties.producers}  # tied names share their labels
    made, read = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for (name, dim, roots), value in zip(places, random, strict=False):
        unique = np.unique(roots)
        read[unique] += value
        if (id(ties.values[sources[name]]), dim) in producers:
            made[unique] += value
    number = np.where(made == 0, -read, made)
    for labels, value in zip(ties.parts, random[len(places) :], strict=True):
        number[np.unique(ties.find(labels))] += value
    return number


def _groups(
    keys: dict[tuple[int, int], list[Labels]], sentences: list[str], places: list[Any], parameters: Collection[str]
) -> tuple[tuple[Group, ...], dict[str, Labels]]:
    size = 1 + max((int(roots.max()) for _, _, roots in places), default=0)
    group_of, unit_of = np.full(size, -1), np.full(size, -1)
    units = [_ordered(np.concatenate(parts), places) for parts in keys.values()]
    for at, roots in enumerate(units):
        group_of[roots], unit_of[roots] = at, np.arange(len(roots))
    members: list[list[Member]] = [[] for _ in units]
    for name, dim, roots in places:
        for at in np.unique(group_of[roots]).tolist():
            where = np.flatnonzero(group_of[roots] == at)
            members[at].append(Member(name, dim, _indices(where, unit_of[roots[where]], len(units[at]))))
    found: list[Group] = []
    names: dict[str, Labels] = {}
    for at, (_, why) in enumerate(keys):
        first = members[at][0]
        if first.parameter not in parameters:  # parameters come before buffers
            continue
        name = base = f"{first.parameter}:{first.dim}"
        again = 1
        while name in names:
            again += 1
            name = f"{base}/{again}"
        names[name] = units[at]
        found.append(Group(name, len(units[at]), tuple(members[at]), None if why < 0 else sentences[why]))
    return tuple(found), names


def _ordered(roots: Labels, places: list[Any]) -> Labels:
    """Units in the order of their indices in the first dimension that holds them."""
    left, parts = set(roots.tolist()), []
    for _, _, labels in places:
        if not left:
            break
        unique, at = np.unique(labels, return_index=True)
        here = [label for label in unique[np.argsort(at)].tolist() if label in left]
        left.difference_update(here)
        parts += here
    return np.array(parts, dtype=np.int64)


def _indices(where: Labels, units: Labels, size: int) -> tuple[tuple[int, ...], ...]:
    order = np.argsort(units, kind="stable")
    ends = np.cumsum(np.bincount(units, minlength=size))[:-1]
    return tuple(tuple(part.tolist()) for part in np.split(where[order], ends))
