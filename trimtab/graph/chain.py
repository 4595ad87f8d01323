"""Chain: the places of a network through which everything that reaches its output must pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.graph.macs import macs
from trimtab.graph.model import EXAMPLE_BATCH, Graph

_MOVES = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"),
    *("clone", "alias", "dropout", "dropout_", "detach", "to", "_to_copy"),
)
"""Operators that only move values: what they read is the better place."""


@dataclass(frozen=True)
class Link:
    """The end of a block of a chain: what follows is computed from this value alone.

    Args:
        name: the longest name that all the block's weights begin with, made unique.
        node: the name of the node that ends it.
        share: of the network's multiply-accumulates, what is done up to here, 0 to 1.
    """

    name: str
    node: str
    share: float


def chain(graph: Graph) -> tuple[Link, ...]:
    """The blocks that a network is a chain of, in order; the last one, which ends in the output, is left out.

    A value ends a block where all that is computed later from weights and data needs no other value. So a stage or
    block of a residual network ends behind its addition, a layer of a transformer behind its residual stream's
    addition (or norm), a plain chain behind its activation or pooling. Masks and sizes, which no weight made, may
    pass by.
    """
    nodes = [n for n in graph.net.graph.nodes if n.op != "output"]
    deep = _deep(nodes, {name for name, p in graph.net.named_parameters() if p.ndim > 1})
    order = {node: i for i, node in enumerate(nodes)}
    last = {n: max((order[u] for u in n.users if u in deep), default=-1) for n in deep}
    total = sum(_work(n) for n in deep)
    ends: list[Node] = []
    alive: set[Node] = set()
    for node in nodes:
        if node not in deep:
            continue
        alive = {n for n in alive if last[n] > order[node]} | ({node} if last[node] > order[node] else set())
        if alive == {node}:
            ends.append(node)
    return _named(graph, nodes, [n for n in _kept(ends, nodes, order) if _fits(n)], total)


def _deep(nodes: Sequence[Node], weights: set[str]) -> set[Node]:
    """The operators whose tensors come from data and from weights."""
    data: set[Node] = set()
    learnt: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(n in data for n in node.all_input_nodes):
            data.add(node)
        if (node.op == "get_attr" and node.target in weights) or any(n in learnt for n in node.all_input_nodes):
            learnt.add(node)
    found = data & learnt
    return {n for n in found if not isinstance(n.meta.get("val"), (int, float, bool, torch.SymInt))}


def _work(node: Node) -> int:
    return macs(node) if node.op == "call_function" else 0


def _kept(ends: Sequence[Node], nodes: Sequence[Node], order: dict[Node, int]) -> list[Node]:
    """Of ends without a product of matrices between them, the last that does more than move values."""
    found: list[list[Node]] = []
    before = -1
    for node in ends:
        works = any(_work(n) for n in nodes[before + 1 : order[node] + 1])
        if works or not found:
            found.append([])
        found[-1].append(node)
        before = order[node]
    chosen = [([n for n in run if not _moves(n)] or run)[-1] for run in found]
    return [n for n in chosen if not any(_writes(user, n) for user in n.users)]


def _moves(node: Node) -> bool:
    return _name(node) in _MOVES


def _name(node: Node) -> str:
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _writes(user: Node, value: Node) -> bool:
    """Whether an operator writes over a value, so that nothing behind it can read that any more."""
    return _name(user).endswith("_") and bool(user.args) and user.args[0] is value


def _fits(node: Node) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor) and value.dtype.is_floating_point and value.ndim > 1 and len(value) == EXAMPLE_BATCH
    )


def _named(graph: Graph, nodes: Sequence[Node], ends: Sequence[Node], total: int) -> tuple[Link, ...]:
    weights = {name for name, p in graph.net.named_parameters() if p.ndim > 1}
    links: list[Link] = []
    done, own = 0, []
    waiting = list(ends)
    seen: dict[str, int] = {}
    for node in nodes:
        done += _work(node)
        own += [str(n.target) for n in node.all_input_nodes if n.op == "get_attr" and n.target in weights]
        if not waiting or node is not waiting[0]:
            continue
        waiting.pop(0)
        if 0 < done < total:
            name = _prefix(own) or (own[-1].rpartition(".")[0] if own else node.name)
            seen[name] = seen.get(name, 0) + 1
            links.append(Link(name if seen[name] == 1 else f"{name}/{seen[name]}", node.name, done / total))
        own = []
    return tuple(links)


def _prefix(names: Sequence[str]) -> str:
    split = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


__all__ = ["Link", "chain"]
