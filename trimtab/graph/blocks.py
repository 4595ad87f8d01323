"""Removable blocks: residual branches whose input and output agree."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from trimtab.core.errors import SurgeryError
from trimtab.graph.model import Graph, shaped
from trimtab.graph.rules.ties import shape

aten = torch.ops.aten
_ADDS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Block:
    """A branch f of y = x + f(x) that can be taken out, leaving y = x.

    Args:
        name: the longest name that all its weights begin with, made longer where two blocks share it.
        parameters: the parameters and buffers that only this branch uses.
        nodes: the names of its operator nodes, in order.
        add: the name of the node that adds it.
        source: the name of the node that x comes from.
    """

    name: str
    parameters: tuple[str, ...]
    nodes: tuple[str, ...]
    add: str
    source: str


def blocks(graph: Graph) -> tuple[Block, ...]:
    """The removable blocks of a graph, in graph order. Inner ones of a nest are blocks of their own."""
    nodes = list(graph.net.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    found = [b for add in graph.nodes(*_ADDS) if (b := _branch(graph, add, nodes, order)) is not None]
    names = _names([b.parameters for b in found], graph)
    return tuple(Block(name, b.parameters, b.nodes, b.add, b.source) for name, b in zip(names, found, strict=True))


def _branch(graph: Graph, add: Node, nodes: list[Node], order: dict[Node, int]) -> Block | None:
    """The branch that an addition joins, if one of its terms is made from the other and used nowhere else."""
    x, y = add.args[:2]
    if not (isinstance(x, Node) and isinstance(y, Node)) or x is y:
        return None
    source, end = (x, y) if order[x] < order[y] else (y, x)
    sizes = {shape(n) for n in (source, end, add)}
    if len(sizes) > 1 or len(sizes.pop()) < 2:
        return None
    if add.kwargs.get("alpha", 1) != 1 or source.op == "get_attr":
        return None
    path = _between(source, end, nodes[order[source] : order[end] + 1])
    if not path or any(user not in path and user is not add for node in path for user in node.users):
        return None
    branch = path | _feeding(path, source)
    branch |= counters(branch, nodes)
    parameters = [str(n.target) for n in nodes if n in branch and n.op == "get_attr"]
    weights = dict(graph.net.named_parameters())
    if not any(name in weights for name in parameters):
        return None
    operators = tuple(n.name for n in nodes if n in branch and n.op == "call_function")
    return Block("", tuple(dict.fromkeys(parameters)), operators, add.name, source.name)


def _between(source: Node, end: Node, span: list[Node]) -> set[Node]:
    """The nodes on the ways from a source to an end, without the source."""
    below: set[Node] = {source}
    for node in span[1:]:
        if any(arg in below for arg in node.all_input_nodes):
            below.add(node)
    if end not in below:
        return set()
    path: set[Node] = {end}
    for node in reversed(span[1:]):
        if node in path:
            path.update(arg for arg in node.all_input_nodes if arg in below and arg is not source)
    return path


def _feeding(path: set[Node], source: Node) -> set[Node]:
    """What only these nodes use: their parameters, and the constants they make."""
    feeding: set[Node] = set()
    queue = [arg for node in path for arg in node.all_input_nodes]
    while queue:
        node = queue.pop()
        if node in path or node in feeding or node is source or node.op == "placeholder":
            continue
        if all(u in path or u in feeding for u in node.users):
            feeding.add(node)
            queue += node.all_input_nodes
    return feeding


def counters(branch: set[Node], nodes: list[Node]) -> set[Node]:
    """The batch counts of the branch's norms: buffers beside theirs that are written and never read."""
    owners = {str(n.target).rpartition(".")[0] for n in branch if n.op == "get_attr"}
    counted = {
        n
        for n in nodes
        if n.op == "get_attr" and str(n.target).rpartition(".")[0] in owners and all(not u.users for u in n.users)
    }
    return (counted | {u for n in counted for u in n.users}) - branch


def _names(parameters: list[tuple[str, ...]], graph: Graph) -> list[str]:
    weights = dict(graph.net.named_parameters())
    names = []
    for each in parameters:
        matrices = [p for p in each if p in weights and weights[p].ndim > 1]
        names.append(_prefix(matrices or [p for p in each if p in weights]))
    for i, name in enumerate(names):
        others = [n for j, n in enumerate(names) if j != i]
        if any(other == name or other.startswith(f"{name}.") for other in others):
            own = next(p for p in parameters[i] if (p in weights and weights[p].ndim > 1) or p == parameters[i][-1])
            parts = own.split(".")
            longer = ".".join(parts[: min(len(name.split(".")) + 1, len(parts) - 1)]) if name else parts[0]
            names[i] = longer
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        names[i] = name if seen[name] == 1 else f"{name}/{seen[name]}"
    return names


def _prefix(names: list[str]) -> str:
    split = [name.split(".")[:-1] for name in names]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def remove(graph: Graph, names: Collection[str]) -> Graph:
    """Take blocks out: where one was added, what it was added to goes on alone.

    Args:
        graph: the network; it is not changed.
        names: the blocks' names, as `blocks` gives them.

    Raises:
        SurgeryError: there is no block of such a name.
    """
    known = {block.name: block for block in blocks(graph)}
    unknown = [name for name in names if name not in known]
    if unknown:
        got = f"no block of this name among {', '.join(known)}" if known else "a network without removable blocks"
        raise SurgeryError("remove", where=unknown[0], got=got)
    result = graph.copy()
    nodes: dict[str, Node] = {node.name: node for node in result.net.graph.nodes}
    dead: set[Node] = set()
    for name in names:
        block = known[name]
        add = nodes[block.add]
        source = next(a for a in add.all_input_nodes if a.name not in block.nodes)
        add.replace_all_uses_with(source)
        dead |= {add, *(nodes[n] for n in block.nodes)}
    erase(result, dead)
    result.net.graph.lint()
    result.net.recompile()
    return shaped(result)


def erase(graph: Graph, dead: set[Node]) -> None:
    """Erase nodes, and the parameters that no node reads any more."""
    read = {str(n.target) for n in graph.net.graph.nodes if n.op == "get_attr"}
    for node in reversed(list(graph.net.graph.nodes)):
        if (node in dead or node.op == "get_attr") and not node.users:
            graph.net.graph.erase_node(node)
    left = {str(n.target) for n in graph.net.graph.nodes if n.op == "get_attr"}
    for name in read - left:
        path, _, leaf = name.rpartition(".")
        owner: Any = graph.net.get_submodule(path)
        delattr(owner, leaf)
    for name, module in reversed(list(graph.net.named_modules())):
        empty = not module._parameters and not module._buffers and not module._modules
        if name and empty:
            path, _, leaf = name.rpartition(".")
            delattr(graph.net.get_submodule(path), leaf)


__all__ = ["Block", "blocks", "counters", "erase", "remove"]
