"""Dynamic: activations whose range is that of each batch as it comes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable

import torch
from torch.fx import Node

from trimtab.compress.quantise.insert import FAKE, FakeTensor, finished
from trimtab.compress.quantise.ranges import SMALLEST
from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
_TOP = 255


def dynamic_tensors(graph: Graph, names: Iterable[str], layers: Collection[str]) -> Graph:
    """The graph with some activations rounded to 8 bits in the range that each batch has.

        s = (max(x, 0) - min(x, 0)) / 255,    z = clamp(round(-min(x, 0) / s), 0, 255)

    Args:
        graph: evaluating; copied.
        names: of the nodes.
        layers: nodes that read the rounded values; all others read what was computed.

    Source: ONNX operator DynamicQuantizeLinear. A batch has one range: its samples are not independent.
    """
    result = graph.copy()
    named = {n.name: n for n in result.net.graph.nodes}
    for name in names:
        _insert(result, named[name], layers)
    return finished(result)


def _insert(graph: Graph, node: Node, layers: Collection[str]) -> None:
    nodes = graph.net.graph
    users = [user for user in node.users if user.name in layers]
    with nodes.inserting_before(min(users, key=list(nodes.nodes).index)):
        call = nodes.call_function
        held = call(_ATEN.detach.default, (node,))  # ranges have no gradient
        low = call(_ATEN.clamp_max.default, (call(_ATEN.amin.default, (held,)), 0.0))
        high = call(_ATEN.clamp_min.default, (call(_ATEN.amax.default, (held,)), 0.0))
        width = call(_ATEN.div.Tensor, (call(_ATEN.sub.Tensor, (high, low)), float(_TOP)))
        scale = call(_ATEN.reshape.default, (call(_ATEN.clamp_min.default, (width, SMALLEST)), [1]))
        zero = call(_ATEN.round.default, (call(_ATEN.div.Tensor, (call(_ATEN.neg.default, (low,)), scale)),))
        zero = call(_ATEN.clamp.default, (zero, 0.0, float(_TOP)))
        rounded = call(FAKE, (node, scale, zero, 0, _TOP, 0.0))
    for user in users:
        user.replace_input_with(node, rounded)


def dynamic_integers(graph: Graph, fake: FakeTensor) -> None:
    """Put quantise and dequantise nodes with found ranges in place of one activation's fake quantisation, in place."""
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    levels = (0, _TOP)
    with nodes.inserting_before(fake.node):
        found = nodes.call_function(ops.choose_qparams.tensor, (fake.source, *levels, SMALLEST, torch.uint8))
        affine = tuple(nodes.call_function(operator.getitem, (found, i)) for i in range(2))
        stored = nodes.call_function(ops.quantize_per_tensor.tensor, (fake.source, *affine, *levels, torch.uint8))
    for user in list(fake.node.users):
        with nodes.inserting_before(user):
            value = nodes.call_function(ops.dequantize_per_tensor.tensor, (stored, *affine, *levels, torch.uint8))
        user.replace_input_with(fake.node, value)
    nodes.erase_node(fake.node)
