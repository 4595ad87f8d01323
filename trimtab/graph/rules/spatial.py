"""Pooling, resizing, pixel shuffles and patches: channels pass, places are left whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Labels, Rule, Ties, Value, argument, given, shape

aten = torch.ops.aten


def places(ties: Ties, node: Node) -> Dims:
    """Batch and channels pass; the one, two or three dimensions of places behind them are left whole."""
    dims = ties.of(given(node, 0))
    count = next(n for n in (1, 2, 3) if f"{n}d" in str(node.target))
    for labels in dims[-count:]:
        ties.pin(labels, f"{node.name} works over places in it")
    return (*dims[:-count], *(None,) * count)


def places_with_index(ties: Ties, node: Node) -> Value:
    """Two results of the same channels."""
    dims: Dims = places(ties, node)
    return dims, dims


def pixel_shuffle(ties: Ties, node: Node) -> Value:
    """(C r r, H, W) to (C, H r, W r): the r r channels of one output channel are one unit."""
    dims, factor = ties.of(given(node, 0)), int(given(node, 1))
    labels: Labels | None = dims[-3]
    if labels is not None:
        labels = ties.tie_rows(labels.reshape(-1, factor * factor), "")
    return (*dims[:-3], labels, None, None)


def pixel_unshuffle(ties: Ties, node: Node) -> Value:
    """(C, H r, W r) to (C r r, H, W): a channel becomes a run of r r channels."""
    dims, factor = ties.of(given(node, 0)), int(given(node, 1))
    return (*dims[:-3], None if dims[-3] is None else np.repeat(dims[-3], factor * factor), None, None)


def channel_shuffle(ties: Ties, node: Node) -> Value:
    """(g, C / g) transposed: channels at the same place of each group are one unit."""
    dims, groups = ties.of(given(node, 0)), int(given(node, 1))
    if dims[1] is None:
        return dims
    units = ties.tie_rows(dims[1].reshape(groups, -1).T, "")
    return (dims[0], np.repeat(units, groups), *dims[2:])


def patches(ties: Ties, node: Node) -> Value:
    """(B, C, H, W) to (B, C k k, L): a channel becomes a run of k k channels."""
    dims = ties.of(given(node, 0))
    times = shape(node)[1] // shape(given(node, 0))[1]
    for labels in dims[2:]:
        ties.pin(labels, f"{node.name} works over places in it")
    return (dims[0], None if dims[1] is None else np.repeat(dims[1], times), None)


def folded(ties: Ties, node: Node) -> Value:
    """(B, C k k, L) to (B, C, H, W): the k k channels of one output channel are one unit."""
    dims, channels = ties.of(given(node, 0)), shape(node)[1]
    ties.pin(dims[2], f"{node.name} works over places in it")
    labels = dims[1]
    return (dims[0], None if labels is None else ties.tie_rows(labels.reshape(channels, -1), ""), None, None)


def unfold(ties: Ties, node: Node) -> Value:
    """Windows along one dimension, put last."""
    dims = list(ties.of(given(node, 0)))
    ties.pin(dims[int(given(node, 1))], f"{node.name} takes windows of it")
    dims[int(given(node, 1))] = None
    return (*dims, None)


def glu(ties: Ties, node: Node) -> Value:
    """a sigmoid(b) of the two halves of a dimension: one of each is a unit."""
    dims, dim = list(ties.of(given(node, 0))), int(argument(node, 1, "dim", -1))
    labels = dims[dim]
    if labels is not None:
        dims[dim] = ties.tie_rows(labels.reshape(2, -1).T, "")
    return tuple(dims)


_PLACES = [
    aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default,
    aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec,
    aten.upsample_trilinear3d.vec, aten.upsample_bicubic2d.vec, aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.default, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
    aten.upsample_nearest1d.default, aten.upsample_linear1d.default, aten._upsample_nearest_exact2d.vec,
]  # fmt: skip
_WITH_INDEX = [
    aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default,
    aten.adaptive_max_pool1d.default, aten.max_pool1d_with_indices.default,
]  # fmt: skip
RULES: dict[Any, Rule] = {
    **{op: Rule(places) for op in _PLACES},
    **{op: Rule(places_with_index) for op in _WITH_INDEX},
    aten.pixel_shuffle.default: Rule(pixel_shuffle),
    aten.pixel_unshuffle.default: Rule(pixel_unshuffle),
    aten.channel_shuffle.default: Rule(channel_shuffle),
    aten.im2col.default: Rule(patches),
    aten.col2im.default: Rule(folded),
    aten.unfold.default: Rule(unfold),
    aten.glu.default: Rule(glu),
}
