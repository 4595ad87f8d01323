"""GPTQ: weights rounded column by column, the rest adjusted for what each rounding changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from trimtab.compress.quantise.staged import Inputs, Staged
from trimtab.compress.quantise.units import CONVOLUTIONS, Layer, settle, source
from trimtab.core.context import Progress
from trimtab.graph.model import Graph
from trimtab.train.zeros import is_sparse

BLOCK = 128
"""Columns whose adjustments are applied to the rest at once."""
DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to it."""


def solved(weight: Tensor, hessian: Tensor, step: Tensor, low: int, high: int, zeros: Tensor | None = None) -> Tensor:
    """Levels of a weight that give nearly its products with the inputs that the Hessian is of.

    `compensated` with q_j = clamp(round(w_j / s_j)). A row (output channel) for which d H d^T, d the change of its
    weights, comes out above that of rounding to nearest is rounded to nearest.

    Args:
        weight: [G, R, n]: groups, output channels of each, inputs.
        hessian: [G, n, n], without damping.
        step: the distance of two levels, [G, R, n].
        low: the lowest level.
        high: the highest level.
        zeros: where the level must be 0, [G, R, n]: a sparse weight's zeros.

    Returns: [G, R, n], whole numbers.

    Source: Frantar et al. (2023), GPTQ, algorithm 1, with scales fixed beforehand.
    """
    weight, hessian, step = weight.double(), hessian.double(), step.double()
    near = torch.round(weight / step).clamp(low, high)

    def nearest(j: int, rest: Tensor) -> Tensor:
        level = torch.round(rest[..., j] / step[..., j]).clamp(low, high)
        return (level if zeros is None else level.masked_fill(zeros[..., j], 0.0)) * step[..., j]

    levels = torch.round(compensated(weight, hessian, nearest) / step)

    def loss(q: Tensor) -> Tensor:
        change = q * step - weight
        return ((change @ hessian) * change).sum(-1, keepdim=True)  # [G, R, 1]

    return torch.where(loss(levels) <= loss(near), levels, near)


def compensated(weight: Tensor, hessian: Tensor, fixed: Callable[[int, Tensor], Tensor]) -> Tensor:
    """A weight whose columns take given values in order, those behind making up for the change of each.

    With U the upper Cholesky factor of the inverse of H = 2 X X^T + damping, for each column j in order:
    q_j = fixed(j, w), e = (w_j - q_j) / U_jj, and w_k -= e U_jk for the columns after it. A column that no input
    reaches changes no other.

    Args:
        weight: [G, R, n], float64.
        hessian: [G, n, n], float64, without damping.
        fixed: the value [G, R] of a column, from its place and the weight as it then is, up to date in the columns of
            the block of `BLOCK` that the place is in.

    Source: Frantar & Alistarh (2022), Optimal Brain Compression, equations 3 and 4; Frantar et al. (2023), GPTQ,
    steps 1 to 3.
    """
    upper, rest = _factor(hessian), weight.clone()
    columns = weight.shape[-1]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros_like(rest[..., start:end])
        for j in range(start, end):
            value = fixed(j, rest)
            error = (rest[..., j] - value) / upper[:, j, j, None]  # [G, R]
            rest[..., j:end] -= error[..., None] * upper[:, None, j, j:end]
            rest[..., j] = value
            errors[..., j - start] = error
        rest[..., end:] -= errors @ upper[:, start:end, end:]
    return rest


def saliences(hessian: Tensor) -> Tensor:
    """U_jj^2, by which w_j^2 is divided for what setting w_j to zero costs once the columns before it are done: [G, n].

    Source: Frantar & Alistarh (2023), SparseGPT, section 3.2.
    """
    return _factor(hessian).diagonal(dim1=-2, dim2=-1).square()


def _factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian: [G, n, n]."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    extra = DAMPING * diagonal.mean(-1, keepdim=True) + (diagonal == 0)
    # a group that no input reaches at all has a mean of 0
    damped = hessian + torch.diag_embed(extra)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def gptq(prepared: Graph, layers: Sequence[Layer], parts: Sequence[Inputs], progress: Progress) -> Graph:
    """The prepared graph with its weights rounded by `solved`, layer by layer in graph order.

    The inputs of a layer are those of the network with all layers before it quantised.

    Args:
        prepared: fake-quantised, with the scales that stay; copied.
        layers: whose weights are rounded.
        parts: calibration inputs in chunks.
        progress: shows a bar.
    """
    result = prepared.copy()
    state = Staged(result, parts)
    for i, layer in enumerate(layers):
        progress("reconstruct", i, len(layers))
        node = state.named[layer.node]
        state.advance(state.place[node])
        weight = result.tensors()[layer.weight].detach()
        rows = weight.movedim(layer.axis, 0)
        steps = layer.step.expand_as(weight).movedim(layer.axis, 0)
        groups = groups_of(node)
        # [out, in, k...] -> [G, out / G, in k...]
        split = [t.reshape(groups, len(t) // groups, -1) for t in (rows, steps)]
        hessian = hessian_of(node, [values[source(node)] for values in state.values], weight)
        zeros = split[0] == 0 if is_sparse(weight) else None
        levels = solved(split[0], hessian, split[1], layer.low, layer.high, zeros)
        moved = levels.reshape(rows.shape).movedim(0, layer.axis).to(weight.dtype)
        state.put(layer.rounded, settle(result, layer, moved))
    progress("reconstruct", len(layers), len(layers))
    return result


def hessian_of(node: Node, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """2 X X^T over all inputs of a layer: [G, n, n], n the weights of one output channel.

    A convolution is a product with the patches that its kernel reads, for each group of channels.

    Args:
        node: the layer's.
        inputs: what it reads, in chunks.
        weight: its weight.
    """
    total: Tensor | float = 0.0
    for x in inputs:
        columns = patches(node, x, weight) if node.target in CONVOLUTIONS else x.reshape(1, -1, x.shape[-1]).mT
        total = total + 2 * (columns @ columns.mT).double()
    return total  # type: ignore[return-value]


def patches(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution's kernel reads at every place: [G, C_in / G k, N L].

    Args:
        node: the convolution's, of one to three dimensions.
        x: its input [N, C_in, ...].
        weight: [C_out, C_in / G, k...].
    """
    dims = weight.ndim - 2
    stride, dilation = (_each(_argument(node, i, name, 1), dims) for i, name in ((3, "stride"), (5, "dilation")))
    reach = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    padding = _argument(node, 4, "padding", 0)
    if padding == "same":
        pads = [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in _each(0 if padding == "valid" else padding, dims)]
    x = functional.pad(x, [p for pair in reversed(pads) for p in pair])
    for i in range(dims):
        # [..., L_i, ..., window] with every dilation-th value of the window
        x = x.unfold(2 + i, reach[i] + 1, stride[i])[..., :: dilation[i]]
    # [N, C_in, L..., k...] -> [C_in, k..., N, L...]
    x = x.permute(1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    groups = groups_of(node)
    return x.reshape(groups, weight[0].numel(), -1)


def groups_of(node: Node) -> int:
    """How many groups of channels a layer has; 1 unless it is a convolution with more."""
    return int(_argument(node, 6, "groups", 1)) if node.target in CONVOLUTIONS else 1


def _argument(node: Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _each(value: Any, dims: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return values * dims if len(values) == 1 else values
