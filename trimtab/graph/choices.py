"""Choices: where a network takes, for each sample, one of two values that it has computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.graph.rules.ties import shape

aten = torch.ops.aten


@dataclass(frozen=True)
class Choice:
    """A node `where(test, yes, no)` whose test has one answer for each sample.

    Args:
        name: what the weights that the test alone reads begin with, such as `exits.heads.layer1`.
        node: its name.
        test: name of the node of the test.
        yes: name of the node that is taken where the test holds.
        no: and where it does not.
    """

    name: str
    node: str
    test: str
    yes: str
    no: str


def choices(graph: Graph) -> tuple[Choice, ...]:
    """The choices of a network, in the order of its nodes."""
    found = []
    for node in graph.nodes(aten.where.self):
        test, yes, no = node.args[:3]
        if not all(isinstance(n, Node) for n in (test, yes, no)):
            continue
        sizes = shape(test)
        if sizes[:1] == (EXAMPLE_BATCH,) and all(n == 1 for n in sizes[1:]) and shape(yes) == shape(no) == shape(node):
            found.append(Choice(_name(test), node.name, test.name, yes.name, no.name))  # type: ignore[arg-type, union-attr]
    return tuple(found)


def _name(test: Node) -> str:
    """What the weights of the last layer before a test begin with, without that layer's own name."""
    node: Node | None = test
    while node is not None:
        weights = [str(w.target) for n in node.all_input_nodes for w in _read(n)]
        if weights:
            return weights[0].rpartition(".")[0].rpartition(".")[0] or weights[0].rpartition(".")[0]
        node = next((n for n in node.all_input_nodes if n.op == "call_function"), None)
    return test.name


def _read(node: Node) -> list[Node]:
    """A parameter, or the parameters that a value is made from alone, such as a dequantised weight."""
    if node.op == "get_attr":
        return [node]
    alone = node.op == "call_function" and bool(node.all_input_nodes)
    return node.all_input_nodes if alone and all(n.op == "get_attr" for n in node.all_input_nodes) else []


def opened(graph: Graph, names: Sequence[str]) -> Graph:
    """A network that returns the values of other nodes, under the nodes' names."""
    fresh = graph.copy()
    nodes: dict[str, Node] = {n.name: n for n in fresh.net.graph.nodes}
    fresh.net.graph.output_node().args = (tuple(nodes[name] for name in names),)
    fresh.net.recompile()
    return replace(fresh, outputs=tuple(names), bare=False)
