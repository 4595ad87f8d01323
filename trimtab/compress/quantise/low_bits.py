"""Low bits: ternary and binary weights, and weights in narrow floating point, that train through their rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.insert import finished, first_user
from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
_META = "quantise_weight"
THRESHOLD = 0.7
"""Of mean abs(w): ternary weights below it become 0 (Li & Liu 2016, eq. 6)."""
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class LowWeight:
    """A ternary, binary or narrow floating-point weight in a prepared graph.

    Args:
        name: of the parameter, in floating point.
        node: what the layers read: the weight as rounded.
        kind: `ternary`, `binary`, `fp16`, `bf16` or `fp8`.
        axis: the output-channel dimension, each channel with a scale of its own; None for one scale.
    """

    name: str
    node: Node
    kind: str
    axis: int | None


def low_quantised(graph: Graph, weights: Mapping[str, tuple[str, int | None]]) -> Graph:
    """The graph with weights rounded to few values in floating point, so that it trains.

    Ternary: w -> a t, t = sign(w) where abs(w) > d, else 0; d = 0.7 mean abs(w), a the mean of the abs(w) above d.
    The gradient of a t is that of w.

    Binary: w -> a sign(w), a = mean abs(w), sign(0) = 1. The gradient of sign(w) is that of w where abs(w) <= 1,
    else 0; a has its own.

    Narrow: the nearest value that the type holds; the largest where w is larger. The gradient is that of w.

    Args:
        graph: evaluating; copied.
        weights: by parameter name, the kind, and the output-channel dimension or None for one scale.

    Source: Li & Liu (2016), Ternary Weight Networks, equations 3 to 6; Rastegari et al. (2016), XNOR-Net,
    section 3.1, equation 6, and its gradient. The papers have one scale a layer and one a channel.
    """
    result = graph.copy()
    for name, (kind, axis) in weights.items():
        _insert(result, name, kind, axis)
    return finished(result)


def _insert(graph: Graph, name: str, kind: str, axis: int | None) -> None:
    nodes, value = graph.net.graph, graph.tensors()[name]
    dims = [d for d in range(value.ndim) if d != axis]
    readers = nodes.find_nodes(op="get_attr", target=name)
    with nodes.inserting_before(first_user(nodes, readers)):
        own = nodes.get_attr(name)
        if kind == "ternary":
            rounded = _ternary(nodes, own, dims)
        elif kind == "binary":
            rounded = _binary(nodes, own, dims)
        else:
            rounded = _narrow(nodes, own, _TYPES[kind])
    rounded.meta[_META] = (name, kind, axis)
    for reader in readers:
        reader.replace_all_uses_with(rounded)
        nodes.erase_node(reader)


def _ternary(nodes: Any, own: Node, dims: list[int]) -> Node:
    call = nodes.call_function
    size = call(_ATEN.abs.default, (own,))
    threshold = call(_ATEN.mul.Tensor, (call(_ATEN.mean.dim, (size, dims, True)), THRESHOLD))
    kept = call(_ATEN.gt.Tensor, (size, threshold))
    total = call(_ATEN.sum.dim_IntList, (call(_ATEN.mul.Tensor, (size, kept)), dims, True))
    count = call(_ATEN.clamp_min.default, (call(_ATEN.sum.dim_IntList, (kept, dims, True)), 1))
    scale = call(_ATEN.div.Tensor, (total, count))
    value = call(_ATEN.mul.Tensor, (call(_ATEN.mul.Tensor, (call(_ATEN.sign.default, (own,)), kept)), scale))
    return _straight(nodes, own, value)


def _binary(nodes: Any, own: Node, dims: list[int]) -> Node:
    call = nodes.call_function
    scale = call(_ATEN.mean.dim, (call(_ATEN.abs.default, (own,)), dims, True))
    # sign(w) + 0.5 is above 0 where w is 0
    sign = call(_ATEN.sign.default, (call(_ATEN.add.Tensor, (call(_ATEN.sign.default, (own,)), 0.5)),))
    clipped = call(_ATEN.clamp.default, (own, -1.0, 1.0))
    rounded: Node = call(_ATEN.mul.Tensor, (_straight(nodes, clipped, sign), scale))
    return rounded


def _narrow(nodes: Any, own: Node, kind: torch.dtype) -> Node:
    call = nodes.call_function
    most = float(torch.finfo(kind).max)
    low = call(_ATEN.to.dtype, (call(_ATEN.clamp.default, (own, -most, most)), kind))
    return _straight(nodes, own, call(_ATEN.to.dtype, (low, torch.float32)))


def _straight(nodes: Any, own: Node, value: Node) -> Node:
    """The value of one node with the gradient of another (straight-through)."""
    gap = nodes.call_function(_ATEN.sub.Tensor, (value, own))
    sum_: Node = nodes.call_function(_ATEN.add.Tensor, (own, nodes.call_function(_ATEN.detach.default, (gap,))))
    return sum_


def low_weights_of(prepared: Graph) -> tuple[LowWeight, ...]:
    """The ternary, binary and narrow weights of a prepared graph, in graph order."""
    found = [(node, node.meta[_META]) for node in prepared.nodes() if _META in node.meta]
    return tuple(LowWeight(name, node, kind, axis) for node, (name, kind, axis) in found)


def is_narrow(kind: str) -> bool:
    """Whether a kind of weights is floating point."""
    return kind in _TYPES


def low_levels(weight: Tensor, kind: str, axis: int | None) -> tuple[Tensor, Tensor]:
    """Levels (-1, 0, 1) in the weight's shape, and scales [C], or [1] for the whole, of a ternary or binary weight.

    Source: as for `low_quantised`.
    """
    dims = [d for d in range(weight.ndim) if d != axis]
    size = weight.abs()
    if kind == "binary":
        return torch.where(weight >= 0, 1.0, -1.0), size.mean(dims).reshape(-1)
    kept = size > size.mean(dims, keepdim=True) * THRESHOLD
    scale = (size * kept).sum(dims) / kept.sum(dims).clamp_min(1)
    return torch.sign(weight) * kept, scale.reshape(-1)


def narrowed(weight: Tensor, kind: str) -> Tensor:
    """A weight rounded to what a narrow floating-point type holds, as float32: a file then stores it as such."""
    most = float(torch.finfo(_TYPES[kind]).max)
    return weight.clamp(-most, most).to(_TYPES[kind]).to(torch.float32)
