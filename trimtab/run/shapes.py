"""Shapes: the convolutions and linear layers of a graph, as shapes that devices are asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.model import EXAMPLE_BATCH, Graph
from trimtab.hardware.layer import Layer

A = torch.ops.aten
CONVOLUTIONS = (A.conv1d.default, A.conv2d.default, A.conv3d.default)
LAYERS = (*CONVOLUTIONS, A.linear.default)


def layers(graph: Graph) -> dict[str, Layer]:
    """The layers of a graph whose cost depends on their shape alone, by the name of their weight, once each."""
    found: dict[str, Layer] = {}
    for call in calls(graph):
        found.setdefault(call.weight, call.layer)
    return found


@dataclass(frozen=True)
class Call:
    """One use of a layer: its node, the name of its weight, and its shape."""

    node: str
    weight: str
    layer: Layer

    @property
    def name(self) -> str:
        """Of the module that owns the weight; of the node where that is the network itself."""
        return self.weight.rpartition(".")[0] or self.node


def calls(graph: Graph) -> tuple[Call, ...]:
    """The same, floating-point or quantised, in the order of execution, a weight as often as it is used."""
    found = []
    for node in graph.nodes(*LAYERS):
        layer, weight = _layer(node), _stored(node.args[1])
        if layer is not None and weight is not None:
            found.append(Call(node.name, weight, layer))
    return tuple(found)


def _stored(weight: Any) -> str | None:
    """The name of the parameter or buffer that a weight is, or is dequantised from."""
    if isinstance(weight, Node) and str(weight.target).startswith("quantized_decomposed.dequantize"):
        weight = weight.args[0]
    return str(weight.target) if isinstance(weight, Node) and weight.op == "get_attr" else None


def _layer(node: Node) -> Layer | None:
    shape = tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    weight = tuple(node.args[1].meta["val"].shape)  # type: ignore[union-attr]
    if node.target == A.linear.default:
        return Layer(weight[1], weight[0], spatial=(math.prod(shape[:-1]) // EXAMPLE_BATCH or 1,))
    given: list[Any] = list(node.args[3:])
    defaults: list[Any] = [[1], [0], [1], 1]
    stride, padding, dilation, groups = given + defaults[len(given) :]
    sides = len(weight) - 2
    if isinstance(padding, str):
        return None

    def each(value: Any) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(int(v) for v in (values * sides if len(values) == 1 else values))

    return Layer(shape[1], weight[0], weight[2:], shape[2:], each(stride), each(padding), each(dilation), int(groups))
