"""Batch, instance, group, layer and RMS norms, softmax, and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Kept, Rule, Ties, Value, argument, given, shape

aten = torch.ops.aten


def per_channel(ties: Ties, node: Node) -> Value:
    """A norm with its own statistics for each channel (dimension 1): y = (x - mean) / sqrt(var + eps) w + b."""
    dims = ties.of(given(node, 0))
    for arg in node.args[1:5]:
        if shape(arg):
            ties.tie(dims[1], ties.of(arg)[0], f"{node.name} normalises an input that is left whole")
    return dims


def per_group(ties: Ties, node: Node) -> Value:
    """A norm over groups of channels: a group is one unit; one group over all is cut channel by channel."""
    groups, dims = int(given(node, 1)), ties.of(given(node, 0))
    for arg in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if shape(arg):
            ties.tie(dims[1], ties.of(arg)[0], f"{node.name} normalises an input that is left whole")
    if dims[1] is not None and groups > 1:
        ties.tie_rows(dims[1].reshape(groups, -1), "")
    return dims


def rewrite_per_group(node: Node, kept: Kept) -> None:
    """As many groups as are left."""
    mask, groups = kept.mask(node, 1), int(given(node, 1))
    if mask is not None and groups > 1:
        node.update_arg(1, int(mask.sum()) * groups // len(mask))


def over_last(ties: Ties, node: Node) -> Value:
    """A norm over the last dimensions, with weights of their shape."""
    dims, count = ties.of(given(node, 0)), len(given(node, 1))
    for arg in (argument(node, 2, "weight"), argument(node, 3, "bias")):
        if shape(arg):
            for a, b in zip(dims[-count:], ties.of(arg), strict=True):
                ties.tie(a, b, f"{node.name} normalises an input that is left whole")
    return dims


def rewrite_over_last(node: Node, kept: Kept) -> None:
    """The normalised shape is what is left of it."""
    sizes: list[Any] = list(given(node, 1))
    rank = len(shape(given(node, 0)))
    for dim, mask in kept.masks(node).items():
        if dim >= rank - len(sizes):
            sizes[dim - rank + len(sizes)] = int(mask.sum())
    node.update_arg(1, sizes)


def _reduced(node: Node, at: int = 1) -> list[int]:
    """The dimensions that a reduction runs over; all where none are named."""
    rank = len(shape(given(node, 0)))
    dims = argument(node, at, "dim")
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % rank for d in dims) if dims else list(range(rank))


def _reduction(at: int) -> Any:
    def label(ties: Ties, node: Node) -> Value:
        """The dimensions that are reduced lose their labels; the others keep them."""
        dims, over = ties.of(given(node, 0)), _reduced(node, at)
        if len(shape(node)) == len(dims):
            return tuple(None if d in over else x for d, x in enumerate(dims))
        return tuple(x for d, x in enumerate(dims) if d not in over)

    return label


def _both_reduced(ties: Ties, node: Node) -> Value:
    """A variance or deviation with its mean."""
    dims, over, first = ties.of(given(node, 0)), _reduced(node), node.meta["val"][0]
    if first.ndim == len(dims):
        rest: Dims = tuple(None if d in over else x for d, x in enumerate(dims))
    else:
        rest = tuple(x for d, x in enumerate(dims) if d not in over)
    return rest, rest


def _reduction_pair(ties: Ties, node: Node) -> Value:
    """A maximum with its index: as a reduction, but an index into removed channels would be another one."""
    dims, over = ties.of(given(node, 0)), _reduced(node)
    for dim in over:
        ties.pin(dims[dim], f"{node.name} gives the index of one of them")
    first: Any = node.meta["val"][0]
    rest = tuple(None if d in over else x for d, x in enumerate(dims))
    rest = rest if first.ndim == len(dims) else tuple(x for d, x in enumerate(dims) if d not in over)
    return rest, rest


def _index_reduction(ties: Ties, node: Node) -> Value:
    """argmax, argmin: the index of one of them."""
    dims, over = ties.of(given(node, 0)), _reduced(node)
    for dim in over:
        ties.pin(dims[dim], f"{node.name} gives the index of one of them")
    if len(shape(node)) == len(dims):
        return tuple(None if d in over else x for d, x in enumerate(dims))
    return tuple(x for d, x in enumerate(dims) if d not in over)


def along(ties: Ties, node: Node) -> Value:
    """A softmax or a running sum along a dimension, over what is left of it."""
    return ties.of(given(node, 0))


def weight_norm(ties: Ties, node: Node) -> Value:
    """w = g v / ||v||, the norm over all dimensions but one."""
    dims, size = ties.of(given(node, 0)), ties.of(given(node, 1))
    for a, b, count in zip(dims, size, shape(given(node, 1)), strict=True):
        if count > 1:
            ties.tie(a, b, f"{node.name} scales an input that is left whole")
    return (dims, size) if node.target is aten._weight_norm_interface.default else dims


def _places(node: Node) -> Sequence[int]:
    return [d for d in range(len(shape(given(node, 0)))) if d != 1]


def _one(node: Node) -> Sequence[int]:
    return [int(given(node, 1)) % len(shape(given(node, 0)))]


def _last(node: Node) -> Sequence[int]:
    rank = len(shape(given(node, 0)))
    return list(range(rank - len(given(node, 1)), rank))


def _all_channels(node: Node) -> Sequence[int]:
    return range(1 if given(node, 1) == 1 else 2, len(shape(given(node, 0))))


_SUMS = [
    aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default, aten.amax.default, aten.amin.default,
    aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction, aten.logsumexp.default, aten.prod.dim_int,
    aten.any.dim, aten.any.default, aten.all.dim, aten.all.default, aten.max.default, aten.min.default,
]  # fmt: skip
_NORMS = [
    aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim,
    aten.norm.ScalarOpt_dim_dtype,
    aten.linalg_norm.default,
]
_PAIRS = [aten.var_mean.dim, aten.var_mean.correction, aten.std_mean.dim, aten.std_mean.correction]
_SOFT = [aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default]
RULES: dict[Any, Rule] = {
    aten.batch_norm.default: Rule(per_channel, None, _places),
    aten.instance_norm.default: Rule(per_channel, None, _places),
    **{op: Rule(weight_norm) for op in (aten._weight_norm.default, aten._weight_norm_interface.default)},
    aten.group_norm.default: Rule(per_group, rewrite_per_group, _all_channels),
    aten.layer_norm.default: Rule(over_last, rewrite_over_last, _last),
    aten.rms_norm.default: Rule(over_last, rewrite_over_last, _last),
    **{op: Rule(_reduction(1), None, _reduced) for op in _SUMS},
    **{op: Rule(_reduction(2), None, lambda node: _reduced(node, 2)) for op in _NORMS},
    **{op: Rule(_reduction_pair) for op in (aten.max.dim, aten.min.dim, aten.median.dim)},
    **{op: Rule(_index_reduction) for op in (aten.argmax.default, aten.argmin.default)},
    **{op: Rule(along, None, _one) for op in _SOFT},
    **{op: Rule(_both_reduced, None, _reduced) for op in _PAIRS},
    aten.logcumsumexp.default: Rule(along, None, _one),
    aten.cumsum.default: Rule(along, None, _one),
}
