"""Views that merge and split dimensions: reshape, view, flatten, unflatten."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.model import EXAMPLE_BATCH
from trimtab.graph.rules.ties import Dims, Kept, Labels, Rule, Ties, Value, argument, given, shape

aten = torch.ops.aten
Sizes = tuple[int, ...]


def view(ties: Ties, node: Node) -> Dims:
    """Blocks of dimensions with the same product are merged and split; one dimension of each carries the labels.

    Merged with dimensions that can't be cut, a label is repeated. Where a dimension is split, the
    outermost part is cut (heads of a width), unless it is picked apart, reduced, or merged again
    behind the inner ones (a channel shuffle), and the inner parts are left whole.
    """
    dims, sizes, out = ties.of(given(node, 0)), shape(given(node, 0)), shape(node)
    result: list[Labels | None] = []
    for inside, outside in blocks(sizes, out):
        if len(inside) == 1 and len(outside) == 1:
            result.append(dims[inside[0]])
            continue
        carrier = _carrier(ties, node, inside)
        labels = None if carrier is None else dims[carrier]
        if carrier is None or labels is None:
            result += [None] * len(outside)
            continue
        axes = [1] * len(inside)
        axes[inside.index(carrier)] = -1
        full = np.broadcast_to(labels.reshape(axes), [sizes[d] for d in inside])
        result += _split(ties, node, full.reshape([out[d] for d in outside]), outside)
    return tuple(result)


def _carrier(ties: Ties, node: Node, inside: list[int]) -> int | None:
    """Which of several labelled dimensions to merge stays cuttable: the first; the others are left whole."""
    dims = ties.of(given(node, 0))
    candidates = [d for d in inside if dims[d] is not None]
    for dim in candidates[1:]:
        ties.pin(dims[dim], f"{node.name} merges it with another dimension that can be cut")
    return candidates[0] if candidates else None


def blocks(a: Sizes, b: Sizes) -> Iterator[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions of two shapes that have the same product."""
    i = j = 0
    while i < len(a) or j < len(b):
        one, two = list(range(i, min(i + 1, len(a)))), list(range(j, min(j + 1, len(b))))
        i, j = i + len(one), j + len(two)
        while math.prod(a[d] for d in one) != math.prod(b[d] for d in two):
            if math.prod(a[d] for d in one) < math.prod(b[d] for d in two):
                one.append(i)
                i += 1
            else:
                two.append(j)
                j += 1
        yield one, two


def _split(ties: Ties, node: Node, full: Labels, outside: list[int]) -> list[Labels | None]:
    """Labels of the parts that a block of labels is split into; all but one part are left whole."""
    roots = ties.find(full)
    vary = [d for d in range(full.ndim) if (roots != roots.take([0], axis=d)).any()]
    if not vary:
        if full.size > 1 and len(outside) != 1:
            ties.pin(full, f"{node.name} splits one unit")
        return [full if len(outside) == 1 else None] * len(outside)
    chosen = vary[0] if len(vary) == 1 else _part(node, vary, outside)
    rows = np.moveaxis(full, chosen, 0).reshape(full.shape[chosen], -1)
    labels = ties.tie_rows(rows, "")
    return [labels if d == chosen else None for d in range(full.ndim)]


def _part(node: Node, vary: list[int], outside: list[int]) -> int:
    """Which of several parts to cut."""
    ends = {d: list(_ends(node, outside[d])) for d in vary}
    parts = [d for d in vary if not any(kind == "picked" for kind, *_ in ends[d])] or vary
    for outer, inner in pairwise(parts):
        merges = {(user, at) for kind, user, at in ends[outer] if kind == "view"}
        for kind, user, at in ends[inner]:
            if kind == "view" and (user, at + 1) in merges:
                sizes = shape(node)
                return outer if sizes[outside[outer]] > sizes[outside[inner]] else inner
    return parts[0]


_KEEP = {aten.clone.default, aten.contiguous.default, aten.alias.default, aten.dropout.default}
_RUNS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}
_PICK = _RUNS | {
    aten.select.int, aten.unbind.int, aten.sum.dim_IntList, aten.mean.dim, aten.softmax.int, aten.amax.default,
    aten.slice.Tensor,
}  # fmt: skip


def _ends(node: Node, dim: int) -> Iterator[tuple[str, Node, int]]:
    """Where a dimension ends up, followed through layout changes: picked apart, or in another view."""
    for user in node.users:
        rank, target = len(shape(node)), user.target
        if target in _KEEP or (target is aten.slice.Tensor and shape(user) == shape(node)):
            yield from _ends(user, dim)
        elif target is aten.permute.default:
            yield from _ends(user, [d % rank for d in given(user, 1)].index(dim))
        elif target is aten.transpose.int:
            a, b = (d % rank for d in (given(user, 1), given(user, 2)))
            yield from _ends(user, {a: b, b: a}.get(dim, dim))
        elif target is aten.unsqueeze.default:
            at = int(given(user, 1)) % (rank + 1)
            yield from _ends(user, dim + (at <= dim))
        elif target is aten.squeeze.dim:
            at = int(given(user, 1)) % rank
            yield from _ends(user, dim - (at < dim))
        elif target in _PICK:
            over: Any = argument(user, 2 if target in _RUNS else 1, "dim", 0)
            over = [over] if isinstance(over, int) else over or range(rank)
            yield ("picked" if dim in [d % rank for d in over] else "used"), user, dim
        else:
            yield ("view" if target in VIEWS else "used"), user, dim


def resized(node: Node, asked: Any, kept: Kept) -> list[Any]:
    """A list of sizes (numbers, -1, or nodes that compute them) rewritten to what is left of a node's result."""
    sizes: list[Any] = list(asked)
    for dim, mask in kept.masks(node).items():
        old, new = len(mask), int(mask.sum())
        at = dim - len(shape(node)) + len(sizes)
        if isinstance(sizes[at], Node):
            sizes[at] = _scaled(node, sizes[at], old, new)
        elif sizes[at] != -1:
            sizes[at] = new
    return sizes


def _scaled(node: Node, size: Node, old: int, new: int) -> Node:
    """A size that depends on the batch, times what is left: size * new // old."""
    a, b = old // EXAMPLE_BATCH, new // EXAMPLE_BATCH
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (size, b))
        product.meta["val"] = old * b
        result = node.graph.call_function(operator.floordiv, (product, a))
        result.meta["val"] = new
    return result


def rewrite_view(node: Node, kept: Kept) -> None:
    """The shape argument is what is left of it."""
    node.update_arg(1, resized(node, given(node, 1), kept))


def rewrite_unflatten(node: Node, kept: Kept) -> None:
    """The sizes of the parts are what is left of them."""
    dim, sizes = int(given(node, 1)) % len(shape(given(node, 0))), list(given(node, 2))
    for at, mask in kept.masks(node).items():
        if dim <= at < dim + len(sizes) and sizes[at - dim] != -1:
            sizes[at - dim] = int(mask.sum())
    node.update_arg(2, sizes)


def view_like(ties: Ties, node: Node) -> Value:
    """A view of the shape of another tensor: where one is cut, the other must be."""
    dims, like = view(ties, node), ties.of(given(node, 1))
    why = f"{node.name} takes the shape of an input that is left whole"
    result: list[Labels | None] = []
    for a, b in zip(dims, like, strict=True):
        ties.tie(a, b, why)
        result.append(None if b is None else a)
    return tuple(result)


VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.reshape_as.default,
}
RULES: dict[Any, Rule] = {
    **{op: Rule(view, rewrite_view) for op in (aten.view.default, aten.reshape.default, aten._unsafe_view.default)},
    aten.flatten.using_ints: Rule(view),
    **{op: Rule(view_like) for op in (aten.reshape_as.default, aten.view_as.default)},
    aten.unflatten.int: Rule(view, rewrite_unflatten),
}
