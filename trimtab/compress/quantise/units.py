"""Units: the weights to round, the layers that read them, and which layers are reconstructed together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.insert import spread, weights_of
from trimtab.compress.quantise.low_bits import low_weights_of
from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
CONVOLUTIONS = frozenset(
    {
        *(_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default),
        *(_ATEN.conv1d.padding, _ATEN.conv2d.padding, _ATEN.conv3d.padding),
    }
)
PRODUCTS = frozenset({_ATEN.linear.default, _ATEN.addmm.default, _ATEN.mm.default, _ATEN.matmul.default})
ACTIVATIONS = frozenset(
    {
        *(_ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.leaky_relu.default),
        *(_ATEN.hardtanh.default, _ATEN.hardtanh_.default, _ATEN.leaky_relu_.default, _ATEN.elu.default),
        *(_ATEN.gelu.default, _ATEN.silu.default, _ATEN.silu_.default, _ATEN.tanh.default, _ATEN.sigmoid.default),
        *(_ATEN.hardswish.default, _ATEN.hardswish_.default, _ATEN.hardsigmoid.default),
    }
)


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is rounded.

    Args:
        weight: the parameter's name.
        rounded: the name of the node that gives the rounded weight to the layer.
        node: the name of the layer's operator node; the first of those that share the weight.
        axis: output-channel dimension of the weight.
        step: the distance of two levels, of a shape that expands to the weight's.
        low: the lowest level.
        high: the highest level.
    """

    weight: str
    rounded: str
    node: str
    axis: int
    step: Tensor
    low: int
    high: int

    def nearest(self, weight: Tensor) -> Tensor:
        """The nearest level of each value, as the fake quantisation rounds: times the inverse of the step."""
        return torch.round(weight * (1 / self.step)).clamp(self.low, self.high)


@dataclass(frozen=True)
class Unit:
    """Layers that are reconstructed together.

    Args:
        layers: in graph order.
        end: the name of the node whose values they are to give.
    """

    layers: tuple[Layer, ...]
    end: str


def layers(prepared: Graph) -> tuple[Layer, ...]:
    """The layers with a fake-quantised weight in a prepared graph, in graph order."""
    place, tensors = _places(prepared), prepared.tensors()
    found = {}
    for fake in weights_of(prepared):
        first = _reader(fake.node, place)
        if first is not None:
            step = spread(tensors[fake.scale].detach().abs(), tensors[fake.name], fake)
            axis = output_dim(first)
            found[place[first]] = Layer(fake.name, fake.node.name, first.name, axis, step, fake.low, fake.high)
    return tuple(found[i] for i in sorted(found))


def weighted(prepared: Graph) -> dict[Node, str]:
    """The nodes of all layers whose weight is rounded, ternary and binary ones too, with its name, in graph order."""
    place = _places(prepared)
    found = {_reader(fake.node, place): fake.name for fake in weights_of(prepared)}
    found |= {_reader(low.node, place): low.name for low in low_weights_of(prepared)}
    return {node: found[node] for node in place if node in found}


def _places(graph: Graph) -> dict[Node, int]:
    return {node: i for i, node in enumerate(graph.net.graph.nodes)}


def _reader(rounded: Node, place: Mapping[Node, int]) -> Node | None:
    """The first layer that reads a weight."""
    readers = [n for n in rounded.users if n.target in CONVOLUTIONS or n.target in PRODUCTS]
    return min(readers, key=place.__getitem__, default=None)


def output_dim(node: Node) -> int:
    """The dimension of a layer's weight that holds its output channels."""
    return 0 if node.target in CONVOLUTIONS or node.target is _ATEN.linear.default else 1


def layer_units(prepared: Graph, found: tuple[Layer, ...]) -> tuple[Unit, ...]:
    """Each layer with the activation function that alone reads it, if there is one."""
    nodes = named(prepared)
    return tuple(Unit((layer,), activated(nodes[layer.node]).name) for layer in found)


def activated(node: Node) -> Node:
    """The activation function that alone reads a node; the node itself if there is none."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in ACTIVATIONS else node


def named(graph: Graph) -> Mapping[str, Node]:
    """The nodes of a graph by name."""
    return {node.name: node for node in graph.net.graph.nodes}


def source(node: Node) -> Node:
    """What a layer's node multiplies with its weight."""
    value: Any = node.args[1 if node.target is _ATEN.addmm.default else 0]
    return value  # type: ignore[no-any-return]


def channel_dim(node: Node) -> int:
    """The dimension of a layer's result that holds its output channels."""
    return node.meta["val"].ndim - 1 if node.target in PRODUCTS else 1


def settle(prepared: Graph, layer: Layer, levels: Tensor) -> Tensor:
    """Move a weight onto its grid, in place in a graph that is the caller's own; the weight then.

    Args:
        prepared: the graph.
        layer: whose weight it is.
        levels: whole numbers of the weight's shape, `low` to `high`.
    """
    weight = prepared.tensors()[layer.weight]
    with torch.no_grad():
        weight.copy_(levels * layer.step)
    return weight.detach()
