"""Operators that work element by element, with broadcasting, and those that pass a tensor on."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Labels, Rule, Ties, Value, given, shape

aten = torch.ops.aten


def pointwise(ties: Ties, node: Node) -> Value:
    """Inputs are aligned on the right and tied index by index."""
    return broadcast(ties, node, [a for a in node.all_input_nodes if isinstance(node.meta.get("val"), torch.Tensor)])


def broadcast(ties: Ties, node: Node, inputs: list[Node], rank: int | None = None) -> Dims:
    """The labels of a result over which inputs broadcast, in its first `rank` dimensions."""
    out = shape(node)
    rank = len(out) if rank is None else rank
    result: list[Labels | None] = [None] * rank
    for dim in range(rank):
        whole, found = False, []
        for arg in inputs:
            at = dim - len(out) + len(shape(arg))
            if at < 0:
                continue
            labels = ties.of(arg)[at]
            if shape(arg)[at] != out[dim]:
                ties.pin(labels, f"{node.name} broadcasts its one element")
            elif labels is not None:
                found.append(labels)
            elif out[dim] > 1:
                whole = True
        for labels in found[1:]:
            ties.tie(found[0], labels, "")
        if found and whole:
            ties.pin(found[0], f"{node.name} ties it to a dimension that has no channels")
        if found:
            result[dim] = found[0]
    return tuple(result)


def passed(ties: Ties, node: Node) -> Value:
    """The result has the labels of the first input."""
    return ties.of(given(node, 0))


def passed_twice(ties: Ties, node: Node) -> Value:
    """Both results (a value and its mask) have the labels of the first input."""
    return ties.of(given(node, 0)), ties.of(given(node, 0))


def nothing(ties: Ties, node: Node) -> Value:
    """There is no result, or one without channels, and no input is tied."""
    return (None,) * len(shape(node))


def prelu(ties: Ties, node: Node) -> Value:
    """y = max(0, x) + a min(0, x), with one a or one for each channel (dimension 1)."""
    dims, slope = ties.of(given(node, 0)), given(node, 1)
    if shape(slope) and shape(slope)[0] > 1:
        ties.tie(dims[1], ties.of(slope)[0], f"{node.name} has one slope for each of its channels")
    return dims


_PASSED = [
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default, aten.alias.default,
    aten.lift_fresh_copy.default, aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default,
    aten.feature_dropout_.default, aten.alpha_dropout.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device,
    aten.to.other, aten._to_copy.default, aten.type_as.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.empty_like.default, aten.rand_like.default, aten.randn_like.default,
    aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli_.float, aten.fill_.Scalar, aten.zero_.default,
    aten.hardswish.default, aten.hardswish_.default, aten.relu6_.default, aten.gelu_.default, aten.log_sigmoid.default,
    aten.masked_fill_.Scalar, aten.rrelu.default,
]  # fmt: skip
_POINTWISE = [
    aten.masked_fill.Tensor, aten.masked_fill.Scalar, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor,
    aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, aten.where.self, aten.copy_.default,
    aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor, aten.__iand__.Tensor, aten.__ior__.Tensor,
    aten.multiply.Tensor, aten.subtract.Tensor, aten.divide.Tensor, aten.floor_divide.default,
    aten.floor_divide.Scalar, aten.mul_.Tensor, aten.sub_.Tensor, aten.div_.Tensor, aten.add_.Tensor,
    aten.relu_.default, aten.absolute.default, aten.negative.default, aten.special_expit.default,
    aten.greater.Scalar, aten.greater.Tensor, aten.greater_equal.Scalar, aten.greater_equal.Tensor, aten.less.Scalar,
    aten.less.Tensor, aten.less_equal.Scalar, aten.less_equal.Tensor, aten.not_equal.Scalar, aten.not_equal.Tensor,
]  # fmt: skip
RULES: dict[Any, Rule] = {
    **{op: Rule(passed) for op in _PASSED},
    **{op: Rule(pointwise) for op in _POINTWISE},
    aten.native_dropout.default: Rule(passed_twice),
    aten.prelu.default: Rule(prelu),
    aten._assert_tensor_metadata.default: Rule(nothing),
    aten._assert_scalar.default: Rule(nothing),
    aten.sym_constrain_range_for_size.default: Rule(nothing),
    aten.sym_size.int: Rule(nothing),
}
POINTWISE = Rule(pointwise)
"""For every operator that torch itself tags as pointwise."""
