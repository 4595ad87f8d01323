"""Follow: which channel each element of a tensor comes from, behind operators that pass a positive scale on.

    g(s x) = s g(x) for every s > 0, channel by channel

A tensor of channel numbers (from 1; 0 is a channel of another layer) travels beside the network's own. An operator
that only moves elements is run on it; one that mixes elements must mix those of one channel only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten
Ids = Tensor | tuple[Tensor, ...]
"""Channel numbers, int32, of a tensor's shape; of each result where an operator has several."""
Rule = Callable[[Node, Mapping[Node, Ids]], Ids | None]


def followed(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """The channel numbers of an operator's result, or None where it does not pass a scale on."""
    rule = _RULES.get(node.target)
    return None if rule is None else rule(node, ids)


def valueless(node: Node) -> bool:
    """Whether an operator looks at a tensor's shape alone."""
    return node.target in _SHAPES


def origin(node: Node) -> Node:
    """What made the values of a node that only moves or copies them."""
    while node.target in _MOVES | _COPIES | _CASTS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def shifts(node: Node) -> bool:
    """Whether an operator passes on a constant added to a channel, too, where all values stay at or above 0."""
    if node.target in _AVERAGES:
        padding = node.args[3] if len(node.args) > 3 else 0
        return not any(padding) if isinstance(padding, (list, tuple)) else not padding
    return node.target in _SHIFTING


def _first(node: Node, ids: Mapping[Node, Ids]) -> Tensor | None:
    """The numbers of the first argument, where no other one has any."""
    value = ids.get(node.args[0]) if isinstance(node.args[0], Node) else None
    alone = sum(n in ids for n in node.all_input_nodes) == 1
    return value if alone and isinstance(value, Tensor) else None


def _same(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """One element from one: relu, a copy."""
    return _first(node, ids)


def _cast(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    return _first(node, ids) if node.meta["val"].is_floating_point() else None


def _moved(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """Elements only change places: run on the numbers; what comes from elsewhere is 0."""

    def value(source: Node) -> Any:
        if source in ids:
            return ids[source]
        example = source.meta.get("val")
        return torch.zeros(example.shape, dtype=torch.int32) if isinstance(example, Tensor) else example

    args, kwargs = tree_map_only(Node, value, (node.args, node.kwargs))
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return tuple(result) if isinstance(result, (list, tuple)) else result


def _spatial(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """Elements of one channel make one: pooling, padding by zeros, resizing; channels stay in dimension 1."""
    value, result = _first(node, ids), node.meta["val"]
    if value is None or value.ndim < 3 or value.ndim != result.ndim or value.shape[:2] != result.shape[:2]:
        return None
    return _even(value, tuple(range(2, value.ndim)), result.shape)


def _even(value: Tensor, dims: tuple[int, ...], shape: Any, keep: bool = True) -> Tensor | None:
    """The numbers spread to `shape`, if they are the same all along `dims`."""
    one = value
    for dim in dims:
        one = one.narrow(dim, 0, 1)
    if not bool((value == one).all()):
        return None
    return (one if keep else one.squeeze(dims)).expand(shape)


def _padded(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    constant = node.target is _ATEN.constant_pad_nd.default or (node.args[2:3] or ("constant",))[0] == "constant"
    last = 2 if node.target is _ATEN.constant_pad_nd.default else 3
    filled = node.args[last] if len(node.args) > last else 0
    return None if constant and filled not in (0, None) else _spatial(node, ids)


def _reduced(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """A mean, sum or maximum over other dimensions than the channels'."""
    value, dims = _first(node, ids), node.args[1] if len(node.args) > 1 else None
    dims = [dims] if isinstance(dims, int) else dims
    if value is None or not isinstance(dims, (list, tuple)) or not dims or not isinstance(node.meta["val"], Tensor):
        return None
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    return _even(value, tuple(int(str(d)) % value.ndim for d in dims), node.meta["val"].shape, keep)


def _times(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """A product with, or quotient by, what does not depend on the scale."""
    left, right = node.args[:2]
    if isinstance(right, Node) and right in ids:
        left, right = right, left
        if node.target not in (_ATEN.mul.Tensor,):
            return None
    value = ids.get(left) if isinstance(left, Node) else None
    if not isinstance(value, Tensor) or (isinstance(right, Node) and right in ids) or node.kwargs:
        return None
    return value.expand(node.meta["val"].shape)


def _product(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """A matrix product with what does not depend on the scale; it sums over elements of one channel."""
    left, right = (ids.get(n) if isinstance(n, Node) else None for n in node.args[:2])
    shape = node.meta["val"].shape
    if left is not None and right is not None:
        return None
    if isinstance(right, Tensor) and right.ndim > 1:
        return _even(right, (right.ndim - 2,), shape)
    if isinstance(left, Tensor) and left.ndim > 1 and node.args[1].meta["val"].ndim > 1:  # type: ignore[union-attr]
        return _even(left, (left.ndim - 1,), shape)
    return None


def _attention(node: Node, ids: Mapping[Node, Ids]) -> Ids | None:
    """Attention gives weighted means over the positions of its values: [..., heads, length, d]."""
    value = ids.get(node.args[2])  # type: ignore[arg-type]
    if not isinstance(value, Tensor) or sum(n in ids for n in node.all_input_nodes) > 1:
        return None
    result = node.meta["val"]
    if value.ndim > 2 and value.shape[-3] != result.shape[-3]:  # fewer heads of values: each serves a run of queries
        value = value.repeat_interleave(result.shape[-3] // value.shape[-3], -3)
    return _even(value, (value.ndim - 2,), result.shape)


def _named(*names: str) -> set[Any]:
    """The overloads of operators that write nothing into a tensor of the caller's, by the operators' names."""
    found = set()
    for name in names:
        packet = getattr(_ATEN, name)
        found |= {getattr(packet, o) for o in packet.overloads() if not o.endswith("out")}
    return found


_MOVES = {operator.getitem} | _named(
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "numpy_T", "mT"),
    *("squeeze", "unsqueeze", "expand", "repeat", "slice", "select", "narrow", "split", "split_with_sizes"),
    *("chunk", "unsafe_chunk", "unsafe_split", "unbind", "cat", "concat", "stack", "movedim", "swapaxes", "swapdims"),
    *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "flip", "repeat_interleave", "tile"),
)
_COPIES = _named("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "dropout", "dropout_", "feature_dropout")
_CASTS = _named("to", "_to_copy", "type_as")
_SHAPES = _named(
    *("sym_size", "sym_numel", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
)
_CUTS = _named("relu", "relu_")
_SLOPES = _named("leaky_relu", "leaky_relu_", "prelu", "abs", "neg")
_MAXIMA = _named("max_pool1d", "max_pool2d", "max_pool3d")
_MEANS = _named("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
_AVERAGES = _named("avg_pool1d", "avg_pool2d", "avg_pool3d")
_RESIZED = _named("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d")
_SHIFTING = _MOVES | _COPIES | _CUTS | _MAXIMA | _MEANS | _RESIZED | _named("leaky_relu", "leaky_relu_")
_SHIFTING |= {_ATEN.mean.dim, _ATEN.amax.default}
_SHIFTING -= _named("cat", "concat", "stack")
_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_MOVES, _moved),
    **dict.fromkeys(_COPIES | _CUTS | _SLOPES, _same),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_MAXIMA | _MEANS | _AVERAGES | _RESIZED, _spatial),
    **dict.fromkeys((_ATEN.pad.default, _ATEN.constant_pad_nd.default), _padded),
    **dict.fromkeys((_ATEN.mean.dim, _ATEN.sum.dim_IntList, _ATEN.amax.default), _reduced),
    **dict.fromkeys((_ATEN.mul.Tensor, _ATEN.mul_.Tensor, _ATEN.div.Tensor, _ATEN.div_.Tensor), _times),
    **dict.fromkeys((_ATEN.mul.Scalar, _ATEN.div.Scalar), _times),
    **dict.fromkeys((_ATEN.matmul.default, _ATEN.mm.default, _ATEN.bmm.default), _product),
    _ATEN.scaled_dot_product_attention.default: _attention,
}
