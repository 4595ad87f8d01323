"""Batch, instance, group, layer and RMS norms, softmax, and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Kept, Rule, Ties, Value, argument, set_argument, shape

aten = torch.ops.aten


def per_channel(ties: Ties, node: Node) -> Value:
    """A norm with its own statistics for each channel (dimension 1): y = (x - mean) / sqrt(var + eps) w + b."""
    dims = ties.of(node.args[0])
    for arg in node.args[1:5]:
        if shape(arg):
            ties.tie(dims[1], ties.of(arg)[0], f"{node.name} normalises an input that is left whole")
    return dims


def per_group(ties: Ties, node: Node) -> Value:
    """A norm over groups of channels: a group is one unit; one group over all is cut channel by channel."""
    groups, dims = int(node.args[1]), ties.of(node.args[0])  # type: ignore[arg-type]
    for arg in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if shape(arg):
            ties.tie(dims[1], ties.of(arg)[0], f"{node.name} normalises an input that is left whole")
    if dims[1] is not None and groups > 1:
        ties.tie_rows(dims[1].reshape(groups, -1), "")
    return dims


def rewrite_per_group(node: Node, kept: Kept) -> None:
    """As many groups as are left."""
    mask, groups = kept.mask(node, 1), int(node.args[1])  # type: ignore[arg-type]
    if mask is not None and groups > 1:
        node.update_arg(1, int(mask.sum()) * groups // len(mask))


def over_last(ties: Ties, node: Node) -> Value:
    """A norm over the last dimensions, with weights of their shape."""
    dims, count = ties.of(node.args[0]), len(node.args[1])  # type: ignore[arg-type]
    for arg in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if shape(arg):
            for a, b in zip(dims[-count:], ties.of(arg), strict=True):
                if a is not None or b is not None:
                    ties.tie(a, b, f"{node.name} normalises an input that is left whole")
    return dims


def rewrite_over_last(node: Node, kept: Kept) -> None:
    """The normalised shape is what is left of it."""
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    rank = len(shape(node.args[0]))
    for dim, mask in kept.masks(node).items():
        if dim >= rank - len(sizes):
            sizes[dim - rank + len(sizes)] = int(mask.sum())
    node.update_arg(1, sizes)


def _reduced(node: Node, at: int = 1) -> list[int]:
    """The dimensions that a reduction runs over; all where none are named."""
    rank = len(shape(node.args[0]))
    dims = argument(node, at, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % rank for d in dims) if dims else list(range(rank))


def _reduction(at: int) -> Any:
    def label(ties: Ties, node: Node) -> Value:
        """The dimensions that are reduced lose their labels; the others keep them."""
        dims, over = ties.of(node.args[0]), _reduced(node, at)
        if len(shape(node)) == len(dims):
            return tuple(None if d in over else x for d, x in enumerate(dims))
        return tuple(x for d, x in enumerate(dims) if d not in over)

    return label


def _reduction_pair(ties: Ties, node: Node) -> Value:
    """A maximum with its index: as a reduction, but an index into removed channels would be another one."""
    dims, over = ties.of(node.args[0]), _reduced(node)
    for dim in over:
        ties.pin(dims[dim], f"{node.name} gives the index of one of them")
    first: Any = node.meta["val"][0]
    rest = tuple(None if d in over else x for d, x in enumerate(dims))
    rest = rest if first.ndim == len(dims) else tuple(x for d, x in enumerate(dims) if d not in over)
    return rest, rest


def _index_reduction(ties: Ties, node: Node) -> Value:
    """argmax, argmin: the index of one of them."""
    dims, over = ties.of(node.args[0]), _reduced(node)
    for dim in over:
        ties.pin(dims[dim], f"{node.name} gives the index of one of them")
    if len(shape(node)) == len(dims):
        return tuple(None if d in over else x for d, x in enumerate(dims))
    return tuple(x for d, x in enumerate(dims) if d not in over)


def along(ties: Ties, node: Node) -> Value:
    """A softmax along a dimension: what is left of it sums to one."""
    return ties.of(node.args[0])


def ordered(ties: Ties, node: Node) -> Value:
    """A running sum: what is left of the dimension is summed in order."""
    return ties.of(node.args[0])


def weight_norm(ties: Ties, node: Node) -> Value:
    """w = g v / ||v||, the norm over all dimensions but one."""
    dims, size = ties.of(node.args[0]), ties.of(node.args[1])
    for a, b, count in zip(dims, size, shape(node.args[1]), strict=True):
        if count > 1:
            ties.tie(a, b, f"{node.name} scales an input that is left whole")
    return (dims, size) if node.target is aten._weight_norm_interface.default else dims


def _places(node: Node) -> Sequence[int]:
    return [d for d in range(len(shape(node.args[0]))) if d != 1]


def _one(node: Node) -> Sequence[int]:
    return [int(node.args[1]) % len(shape(node.args[0]))]  # type: ignore[call-overload]


def _last(node: Node) -> Sequence[int]:
    rank = len(shape(node.args[0]))
    return list(range(rank - len(node.args[1]), rank))  # type: ignore[arg-type]


def _all_channels(node: Node) -> Sequence[int]:
    return [1] if node.args[1] == 1 else []


def _variance_scale(node: Node) -> Sequence[int]:
    return _reduced(node)


def _rms_eps(node: Node, kept: Kept) -> None:
    rewrite_over_last(node, kept)
    if argument(node, 3, "eps") is None:
        set_argument(node, 3, "eps", float(torch.finfo(node.meta["val"].dtype).eps))


def elements(node: Node) -> int:
    """The number of elements of the first input."""
    return math.prod(shape(node.args[0]))


_SUMS = [
    aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.amax.default, aten.amin.default,
    aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction, aten.logsumexp.default, aten.prod.dim_int,
    aten.any.dim, aten.any.default, aten.all.dim, aten.all.default, aten.max.default, aten.min.default,
]  # fmt: skip
_NORMS = [aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype]
_SOFT = [aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default]
RULES = {
    aten.batch_norm.default: Rule(per_channel, None, _places),
    aten.instance_norm.default: Rule(per_channel, None, _places),
    **{op: Rule(weight_norm) for op in (aten._weight_norm.default, aten._weight_norm_interface.default)},
    aten.group_norm.default: Rule(per_group, rewrite_per_group, _all_channels),
    aten.layer_norm.default: Rule(over_last, rewrite_over_last, _last),
    aten.rms_norm.default: Rule(over_last, rewrite_over_last, _last),
    **{op: Rule(_reduction(1), None, _variance_scale) for op in _SUMS},
    **{op: Rule(_reduction(2), None, lambda node: _reduced(node, 2)) for op in _NORMS},
    **{op: Rule(_reduction_pair) for op in (aten.max.dim, aten.min.dim, aten.median.dim)},
    **{op: Rule(_index_reduction) for op in (aten.argmax.default, aten.argmin.default)},
    **{op: Rule(along, None, _one) for op in _SOFT},
    aten.cumsum.default: Rule(ordered, None, _one),
}
