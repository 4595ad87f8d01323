"""Signed: the same quantised graph with activations as int8 instead of uint8, for compilers that have only those."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.model import Graph, place, shaped
from trimtab.graph.simplify import pruned

_Q = torch.ops.quantized_decomposed
_HALF = 128


def is_quantised(graph: Graph) -> bool:
    """Whether a graph holds quantise or dequantise nodes."""
    return any(str(node.target).startswith("quantized_decomposed.") for node in graph.nodes())


def signed(graph: Graph) -> Graph:
    """A quantised graph whose activations are int8 where they were uint8; it computes the same numbers.

        q' = q - 128,    z' = z - 128,    and so    (q' - z') s = (q - z) s

    The scale stays, and the limits of the clamp move with the zero point, so that nothing is rounded anew. Weights
    are int8 already.

    Args:
        graph: with quantise and dequantise nodes of one scale for each activation; copied.
    """
    fresh = graph.copy()
    targets = (_Q.quantize_per_tensor.default, _Q.dequantize_per_tensor.default)
    for node in fresh.nodes(*targets):
        source, scale, zero, low, high, dtype = node.args
        if dtype is torch.uint8:
            node.args = (source, scale, zero - _HALF, low - _HALF, high - _HALF, torch.int8)  # type: ignore[operator]
    fresh.net.recompile()
    return shaped(fresh)


def float_biases(graph: Graph) -> Graph:
    """A quantised graph whose biases are stored as floats, for compilers that make the integers themselves.

        b = q s,    s = s_input s_weight

    They round b / s to the same integer again.

    Args:
        graph: with biases in 32-bit integers behind a dequantise node; copied.
    """
    fresh = graph.copy()
    for node in list(fresh.nodes(_Q.dequantize_per_channel.default)):
        if node.args[6] is torch.int32:
            _to_float(fresh, node)
    return shaped(pruned(fresh))


def _to_float(graph: Graph, node: Node) -> None:
    levels: Any = node.args[0]
    tensors = graph.tensors()
    q, scale, zero = (tensors[str(n.target)] for n in node.args[:3])  # type: ignore[union-attr]
    # in double: the nearest float to the level, so that dividing it again gives that level
    value = ((q.double() - zero.double()) * scale.double()).float()
    name = f"{levels.target}_float"
    place(graph.net, name, value)
    with graph.net.graph.inserting_before(node):
        fresh = graph.net.graph.get_attr(name)
    fresh.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(fresh)
    graph.net.graph.erase_node(node)
