"""Fold batch norm into the layer before it."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Node

from trimtab.graph.model import Graph, shaped

_ATEN = torch.ops.aten
_LAYERS = (_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default)


def fold_batch_norm(graph: Graph) -> Graph:
    """w' = w gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta, in a new graph.

    Only where the norm is the one reader of a convolution's or linear layer's result, and evaluating.

    Source: Jacob et al. (2018), section 3.2.
    """
    result = graph.copy()
    for norm in list(result.nodes(_ATEN.batch_norm.default)):
        layer = norm.args[0]
        if norm.args[5] is False and isinstance(layer, Node) and layer.target in _LAYERS and len(layer.users) == 1:
            _fold(result, layer, norm)
    result.net.graph.eliminate_dead_code()
    result.net.recompile()
    _drop_unused(result)
    return shaped(result)


def _fold(graph: Graph, layer: Node, norm: Node) -> None:
    weight = layer.args[1]
    if not isinstance(weight, Node) or weight.op != "get_attr" or len(weight.users) > 1:
        return
    get = graph.tensors().__getitem__

    def value(node: object, default: float) -> torch.Tensor:
        if isinstance(node, Node):
            return get(str(node.target)).detach()
        return torch.full_like(mean, default)

    mean = get(str(norm.args[3].target)).detach()  # type: ignore[union-attr]
    var = get(str(norm.args[4].target)).detach()  # type: ignore[union-attr]
    factor = value(norm.args[1], 1.0) / torch.sqrt(var + float(norm.args[7]))  # type: ignore[arg-type]
    bias = layer.args[2] if len(layer.args) > 2 else None
    kernel = get(str(weight.target)).detach()
    path, _, leaf = str(weight.target).rpartition(".")
    owner = graph.net.get_submodule(path)
    setattr(owner, leaf, nn.Parameter(kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))))
    fresh = nn.Parameter((value(bias, 0.0) - mean) * factor + value(norm.args[2], 0.0))
    if isinstance(bias, Node):
        home, _, name = str(bias.target).rpartition(".")
        setattr(graph.net.get_submodule(home), name, fresh)
    else:
        owner.register_parameter("bias", fresh)
        with graph.net.graph.inserting_before(layer):
            bias = graph.net.graph.get_attr(f"{path}.bias" if path else "bias")
        layer.args = (*layer.args[:2], bias, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.net.graph.erase_node(norm)


def _drop_unused(graph: Graph) -> None:
    used = {str(n.target) for n in graph.net.graph.find_nodes(op="get_attr")}
    for name in list(graph.tensors()):
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph.net.get_submodule(path), leaf)
