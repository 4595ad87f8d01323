"""Norms: batch norm that lives while quantised weights train, and is folded into their scales exactly."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.ranges import floored
from trimtab.graph.model import Graph, place

_ATEN = torch.ops.aten


def norm_of(layer: Node) -> Node | None:
    """The batch norm that alone reads a layer's result, with statistics of its own; None where there is none."""
    users = list(layer.users)
    if len(users) != 1 or users[0].target is not _ATEN.batch_norm.default:
        return None
    norm = users[0]
    if layer.target is _ATEN.linear.default and layer.meta["val"].ndim != 2:
        return None  # its channels are not the norm's
    given = all(isinstance(n, Node) and n.op == "get_attr" for n in norm.args[1:5] if n is not None)
    whole = norm.args[3] is not None and norm.args[4] is not None
    return norm if given and whole and norm.args[0] is layer else None


def live_norms(graph: Graph, weights: Collection[str]) -> dict[str, str]:
    """For each layer node that reads one of the weights and whose batch norm is still there: that norm's name."""
    found = {}
    for node in graph.nodes():
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in weights:
            norm = norm_of(node)
            if norm is not None:
                found[node.name] = norm.name
    return found


def fold_into_scales(graph: Graph, weights: Collection[Node]) -> dict[Node, Tensor]:
    """Take each batch norm behind a layer of a quantised weight out, in place, and give what its scales become.

        w s -> w (s gamma / sqrt(var + eps)),    b' = (b - mean) gamma / sqrt(var + eps) + beta

    The levels stay (negative where the factor is), so nothing is rounded anew.

    Args:
        graph: evaluating.
        weights: the nodes that give quantised weights, each by output channel along dimension 0.

    Returns: by the weight's node, gamma / sqrt(var + eps): [C].

    Source: Jacob et al. (2018), section 3.2, equation 14, applied to the scale in place of the weight.
    """
    factors: dict[Node, Tensor] = {}
    for node in list(graph.nodes()):
        weight: Any = node.args[1] if len(node.args) > 1 else None
        norm = norm_of(node)
        if not isinstance(weight, Node) or weight not in weights or len(weight.users) > 1:
            continue
        if norm is not None and norm.args[5] is False:
            factors[weight] = _fold(graph, node, norm)
    return factors


def _fold(graph: Graph, layer: Node, norm: Node) -> Tensor:
    tensors = graph.tensors()
    values = (None if n is None else tensors[str(n.target)].detach().double() for n in norm.args[1:5])  # type: ignore[union-attr]
    gamma, beta, mean, variance = values
    assert mean is not None  # norm_of has seen to it
    assert variance is not None
    factor = torch.rsqrt(variance + float(str(norm.args[7])))
    factor = factor if gamma is None else factor * gamma
    old: Any = layer.args[2] if len(layer.args) > 2 else None
    shift = -mean if old is None else tensors[str(old.target)].detach().double() - mean
    shift = shift * factor if beta is None else shift * factor + beta
    name = _bias_name(graph, norm) if old is None else str(old.target)
    place(graph.net, name, nn.Parameter(shift.float().contiguous()))
    if old is None:
        with graph.net.graph.inserting_before(layer):
            bias = graph.net.graph.get_attr(name)
        layer.args = (*layer.args[:2], bias, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    graph.net.graph.erase_node(norm)
    return factor.float()


def _bias_name(graph: Graph, norm: Node) -> str:
    """A free name beside the layer's weight."""
    weight: Any = norm.args[0].args[1]  # type: ignore[union-attr]
    source: Any = next(n for n in _above(weight) if n.op == "get_attr")
    owner = str(source.target).rpartition(".")[0]
    name = f"{owner}.bias" if owner else "bias"
    while name in graph.tensors():
        name += "_folded"
    return name


def _above(node: Node) -> list[Node]:
    """A node and the first inputs before it."""
    found = [node]
    while found[-1].all_input_nodes:
        found.append(found[-1].all_input_nodes[0])
    return found


def rescaled(
    levels: Tensor, scale: Tensor, factor: Tensor | None, axis: int | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Levels and scales after a factor for each channel; a scale that is too small for runtimes is raised.

    Args:
        levels: of a weight.
        scale: [C], [1], or [C * groups].
        factor: [C]; None for 1.
        axis: the output-channel dimension; None for one scale.
        keep: a channel of a raised scale keeps its levels; else they are rounded to the same values anew.
    """
    moved = levels if axis is None else levels.movedim(axis, 0)
    rows = moved.reshape(len(scale), -1)
    if factor is not None:
        each = factor.repeat_interleave(len(scale) // len(factor))
        scale, rows = scale * each.abs(), rows * torch.where(each < 0, -1.0, 1.0)[:, None]
    least = floored(scale)
    if not keep:
        rows = torch.round(rows * (scale / least)[:, None])
    moved = rows.reshape(moved.shape)
    return moved if axis is None else moved.movedim(0, axis), least
