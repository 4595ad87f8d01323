"""Switched: a prepared graph in which the quantisation of each layer can be left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_arg

from trimtab.compress.quantise.insert import FakeTensor, tensors_of, weights_of
from trimtab.compress.quantise.low_bits import low_weights_of
from trimtab.graph.model import Graph

Values = dict[Node, Any]


@dataclass(frozen=True)
class Site:
    """One quantised layer.

    Args:
        name: of the module that owns its weight.
        weight: the name of its weight.
        kind: of it: `int8`, `int4`, `ternary`, ...
        rounded: the node that gives the weight on its grid.
        between: nodes that only move that, such as a transpose.
        users: the nodes that compute with it.
        inputs: the quantised activations that these read.
        start: the place in the graph of the first node that its quantisation touches.
    """

    name: str
    weight: str
    kind: str
    rounded: Node
    between: tuple[Node, ...]
    users: tuple[Node, ...]
    inputs: tuple[FakeTensor, ...]
    start: int


class Switched(Interpreter):
    """Runs a prepared graph with the quantisation of some layers only.

    A layer's quantisation is that of its weight and of its own input: another reader of the same tensor keeps
    what it reads. What no layer reads (additions, pooling) is quantised where `OTHERS` is on.

    Args:
        graph: prepared, evaluating.
        weights: by name, the floating-point weights; those of the graph may have been moved onto their grid.
    """

    OTHERS = ""

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor]) -> None:
        super().__init__(graph.net, garbage_collect_values=False)
        self.graph_of, self.weights = graph, weights
        self.order = list(graph.net.graph.nodes)
        place = {node: i for i, node in enumerate(self.order)}
        self.fakes = {fake.node: fake for fake in tensors_of(graph)}
        kinds = [(w.name, f"int{max(w.high, -w.low - 1).bit_length() + 1}", w.node) for w in weights_of(graph)]
        kinds += [(w.name, w.kind, w.node) for w in low_weights_of(graph)]
        self.sites = tuple(_site(*kind, self.fakes, place) for kind in kinds)
        self.homes = {node: s.name for s in self.sites for node in (s.rounded, *s.between, *s.users)}
        self.names = {s.rounded: s.weight for s in self.sites}
        self.on: Collection[str] = ()

    @property
    def first(self) -> int:
        """The place behind the inputs."""
        return 1 + max(i for i, node in enumerate(self.order) if node.op == "placeholder")

    @property
    def everything(self) -> frozenset[str]:
        """All layers, and the others."""
        return frozenset({self.OTHERS, *(s.name for s in self.sites)})

    @torch.no_grad()
    def values(self, inputs: tuple[Tensor, ...], on: Collection[str]) -> Values:
        """The value of every node with the quantisation of `on`."""
        self.on, self.env, self.args_iter = on, {}, iter(inputs)
        for node in self.order:
            self.env[node] = self.run_node(node)
        return self.env

    @torch.no_grad()
    def outputs(self, known: Values, start: int, on: Collection[str]) -> Any:
        """The outputs with the quantisation of `on`, from the values before `start`, which it leaves as they are."""
        self.on, self.env = on, {node: known[node] for node in self.order[:start]}
        for node in self.order[start:]:
            self.env[node] = self.run_node(node)
        return self.returned(self.env)

    def returned(self, values: Values) -> Any:
        """The network's outputs: a tensor, or by name."""
        found = values[self.order[-1]]
        graph = self.graph_of
        return found[0] if graph.bare else dict(zip(graph.outputs, found, strict=True))

    def run_node(self, n: Node) -> Any:
        """A node's value; with floating-point operands where its layer is off."""
        if n.op in ("placeholder", "get_attr") or self.homes.get(n, self.OTHERS) in self.on:
            return super().run_node(n)
        if n in self.names:
            return self.weights[self.names[n]]
        args, kwargs = self.operands(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def operands(self, n: Node) -> tuple[Any, Any]:
        """Arguments of a node with activations as they are before they are quantised."""

        def before(arg: Node) -> Any:
            return self.env[self.fakes[arg].source if arg in self.fakes else arg]

        return map_arg(n.args, before), map_arg(n.kwargs, before)


def _site(weight: str, kind: str, rounded: Node, fakes: Mapping[Node, FakeTensor], place: Mapping[Node, int]) -> Site:
    between: list[Node] = []
    users: list[Node] = []
    todo = list(rounded.users)
    while todo:
        node = todo.pop(0)
        moved = node.op == "call_function" and len(node.all_input_nodes) == 1
        (between if moved else users).append(node)
        todo += node.users if moved else ()
    inputs = tuple(fakes[a] for user in users for a in user.all_input_nodes if a in fakes)
    start = min(place[node] for node in (rounded, *users))
    name = weight.rpartition(".")[0] or weight
    return Site(name, weight, kind, rounded, tuple(between), tuple(users), inputs, start)
