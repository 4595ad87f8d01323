"""Layer: a node whose weight can take a factor for each channel that it makes, or that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
CONVOLUTIONS: dict[Any, int] = {
    **dict.fromkeys((_ATEN.conv1d.default, _ATEN.conv1d.padding), 1),
    **dict.fromkeys((_ATEN.conv2d.default, _ATEN.conv2d.padding), 2),
    **dict.fromkeys((_ATEN.conv3d.default, _ATEN.conv3d.padding), 3),
}
"""Convolutions by their number of spatial dimensions."""
TRANSPOSED: dict[Any, int] = {
    _ATEN.conv_transpose1d.default: 1,
    _ATEN.conv_transpose2d.input: 2,
    _ATEN.conv_transpose3d.input: 3,
}
LINEAR: dict[Any, tuple[int, int, int | None]] = {
    _ATEN.linear.default: (0, 1, 2),
    _ATEN.addmm.default: (1, 2, 0),
    _ATEN.mm.default: (0, 1, None),
    _ATEN.matmul.default: (0, 1, None),
}
"""Linear layers: where input, weight and bias stand among the arguments."""
_NORMS: dict[Any, tuple[int, int | None, int]] = {
    _ATEN.layer_norm.default: (2, 3, -1),
    _ATEN.rms_norm.default: (2, None, -1),
    _ATEN.group_norm.default: (2, 3, 1),
    _ATEN.instance_norm.default: (1, 2, 1),
    _ATEN.batch_norm.default: (1, 2, 1),
}
"""Norms with parameters: where weight and bias stand among the arguments, and which dimension holds the channels."""
_OUT, _IN = 1, 2
_NAMED = 6


@dataclass(frozen=True)
class Layer:
    """A node whose weight can take a factor for each channel that it makes, or that it reads.

    The weight is seen as [groups, A, B, rest]; outputs lie along A and inputs along B, or the other way round.

    Args:
        node: the operator.
        data: the position of its input among its arguments.
        weight: the parameter's name.
        bias: the parameter's name, if it has one.
        groups: of a convolution; else 1.
        flipped: the weight holds inputs before outputs (a transposed convolution, `x @ W`).
        dim: the dimension of its input and of its result that holds channels.
    """

    node: Node
    data: int
    weight: str
    bias: str | None
    groups: int
    flipped: bool
    dim: int

    @property
    def name(self) -> str:
        """The user's name of the layer."""
        return self.weight.rpartition(".")[0] or self.weight


def largest(layer: Layer, weight: Tensor, made: bool) -> Tensor:
    """max abs(w) for each channel that a layer makes (or reads): [channels]."""
    dim = _dim(layer, made)
    return _split(layer, weight).abs().amax((3 - dim, 3)).reshape(-1)


def scaled(layer: Layer, weight: Tensor, factor: Tensor, made: bool) -> Tensor:
    """The weight times a factor for each channel that the layer makes (or reads), [channels]."""
    return (_split(layer, weight) * _spread(layer, factor, made)).reshape(weight.shape)


def constant(layer: Layer, weight: Tensor, value: Tensor) -> Tensor:
    """What a layer gives without its bias where each channel that it reads is a constant `value` [channels_in]."""
    dim = _dim(layer, made=False)
    return (_split(layer, weight) * _spread(layer, value, made=False)).sum((dim, 3)).reshape(-1)


def _dim(layer: Layer, made: bool) -> int:
    return _OUT if made != layer.flipped else _IN


def _split(layer: Layer, weight: Tensor) -> Tensor:
    second = weight.shape[1] if weight.ndim > 1 else 1
    return weight.reshape(layer.groups, weight.shape[0] // layer.groups, second, -1)


def _spread(layer: Layer, factor: Tensor, made: bool) -> Tensor:
    rows = factor.reshape(layer.groups, -1)
    return rows[:, :, None, None] if _dim(layer, made) == _OUT else rows[:, None, :, None]


def layer_of(node: Node, tensors: Mapping[str, Tensor]) -> Layer | None:
    """The convolution or linear layer that a node computes, with a parameter as its weight."""
    if node.target in CONVOLUTIONS or node.target in TRANSPOSED:
        spatial = CONVOLUTIONS.get(node.target) or TRANSPOSED[node.target]
        groups = int(_argument(node, 6) or 1)
        return _layer(tensors, node, (0, 1, 2), groups, node.target in TRANSPOSED, -1 - spatial)
    places = LINEAR.get(node.target)
    if places is None or node.kwargs:
        return None
    weight = node.args[places[1]]
    if not isinstance(weight, Node) or weight.op != "get_attr" or weight.meta["val"].ndim != 2:
        return None
    return _layer(tensors, node, places, 1, node.target is not _ATEN.linear.default, -1)


def norm_of(node: Node, tensors: Mapping[str, Tensor]) -> Layer | None:
    """A norm with its own parameters, or a product with a parameter (and a sum with one behind it)."""
    if node.target in _NORMS:
        weight_at, bias_at, dim = _NORMS[node.target]
        found = _layer(tensors, node, (0, weight_at, bias_at), 1, False, dim)
        return found if found is not None and tensors[found.weight].ndim == 1 else None
    if node.target is _ATEN.mul.Tensor:
        weight = _vector(node, tensors)
        return None if weight is None else Layer(node, 1 - weight, _target(node, weight), None, 1, False, -1)
    if node.target is _ATEN.add.Tensor and not node.kwargs:
        bias = _vector(node, tensors)
        product = None if bias is None else node.args[1 - bias]
        inner = norm_of(product, tensors) if isinstance(product, Node) and product.target is _ATEN.mul.Tensor else None
        if bias is not None and inner is not None and len(inner.node.users) == 1:
            return Layer(node, 1 - bias, inner.weight, _target(node, bias), 1, False, -1)
    return None


def _vector(node: Node, tensors: Mapping[str, Tensor]) -> int | None:
    """The position of a parameter [C] that is multiplied with, or added to, the last dimension [..., C]."""
    for i in (0, 1):
        one, other = node.args[i], node.args[1 - i]
        if not isinstance(one, Node) or not isinstance(other, Node) or one.op != "get_attr":
            continue
        if isinstance(tensors.get(str(one.target)), nn.Parameter):
            shape = tuple(one.meta["val"].shape)
            if other.op != "get_attr" and len(shape) == 1 and shape == tuple(other.meta["val"].shape[-1:]):
                return i
    return None


def _target(node: Node, place: int) -> str:
    return str(node.args[place].target)  # type: ignore[union-attr]


def _layer(
    tensors: Mapping[str, Tensor], node: Node, places: tuple[int, int, int | None], groups: int, flipped: bool, dim: int
) -> Layer | None:
    data, weight, bias = places[0], _argument(node, places[1]), _argument(node, places[2])
    for value in (weight, bias):
        if value is not None and not (isinstance(value, Node) and value.op == "get_attr"):
            return None
    tensor = None if weight is None else tensors.get(str(weight.target))
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return None
    return Layer(node, data, str(weight.target), None if bias is None else str(bias.target), groups, flipped, dim)


def _argument(node: Node, place: int | None) -> Any:
    return node.args[place] if place is not None and len(node.args) > place else None


def private(graph: Graph, layer: Layer, bias: bool) -> bool:
    """Whether a layer alone reads its weight (and its bias)."""
    names = [layer.weight] + ([layer.bias] if bias and layer.bias is not None else [])
    users = [u for name in names for n in graph.net.graph.find_nodes(op="get_attr", target=name) for u in n.users]
    return len(users) == len(names)


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def plain(node: Node) -> str:
    """An operator's name for a reader: `aten.relu_.default` is relu."""
    if node.op == "output":
        return "the network's output"
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")
