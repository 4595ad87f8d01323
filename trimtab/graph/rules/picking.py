"""Operators that join dimensions, pad them, or pick elements of them."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Kept, Labels, Rule, Ties, Value, argument, given, shape

aten = torch.ops.aten


def _dim(node: Node, at: int = 1, name: str = "dim", default: int = 0) -> int:
    return int(argument(node, at, name, default)) % max(len(shape(given(node, 0))), 1)


def cat(ties: Ties, node: Node) -> Value:
    """Tensors joined along one dimension: their labels one after another."""
    parts: list[Node] = [n for n in given(node, 0) if shape(n) != (0,)]
    dim = int(argument(node, 1, "dim", 0)) % len(shape(node))
    result = list(ties.of(parts[0]))
    for part in parts[1:]:
        for d, labels in enumerate(ties.of(part)):
            if d != dim:
                ties.tie(result[d], labels, f"{node.name} joins it with an input that is left whole")
                result[d] = None if labels is None else result[d]
    along = [ties.of(p)[dim] for p in parts]
    if all(labels is None for labels in along):
        result[dim] = None
    else:
        result[dim] = np.concatenate(
            [_or_whole(ties, x, shape(p)[dim], node) for x, p in zip(along, parts, strict=True)]
        )
    return tuple(result)


def _or_whole(ties: Ties, labels: Labels | None, size: int, node: Node) -> Labels:
    if labels is not None:
        return labels
    labels = ties.fresh(size)
    ties.pin(labels, f"{node.name} joins it with an input that is left whole")
    return labels


def stack(ties: Ties, node: Node) -> Value:
    """Tensors joined along a new dimension."""
    parts: list[Node] = list(given(node, 0))
    dim = int(argument(node, 1, "dim", 0)) % len(shape(node))
    result = list(ties.of(parts[0]))
    for part in parts[1:]:
        for d, labels in enumerate(ties.of(part)):
            ties.tie(result[d], labels, f"{node.name} joins it with an input that is left whole")
            result[d] = None if labels is None else result[d]
    result.insert(dim, None)
    return tuple(result)


def _bounds(node: Node) -> tuple[int, int, int]:
    size = shape(given(node, 0))[_dim(node)]
    start, end, step = argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    if not all(n is None or isinstance(n, int) for n in (start, end, step)):
        return 0, -1, 1
    return slice(start, end).indices(size)[0], slice(start, end).indices(size)[1], int(step)


def slices(ties: Ties, node: Node) -> Value:
    """A run of a dimension; with a step above one, or bounds that depend on the batch, it is left whole."""
    dims, dim = list(ties.of(given(node, 0))), _dim(node)
    labels = dims[dim]
    if labels is not None:
        start, end, step = _bounds(node)
        if step != 1 or end < 0:
            ties.pin(labels, f"{node.name} picks single elements of it")
        dims[dim] = labels[start:end] if step == 1 and end >= 0 else None
        if step == 1 and 0 < end - start < len(labels) != 2 * (end - start):
            ties.part(labels[start:end])
    return tuple(dims)


def rewrite_slice(node: Node, kept: Kept) -> None:
    """The bounds are what is left before them."""
    mask = kept.mask(given(node, 0), _dim(node))
    if mask is not None:
        start, end, _ = _bounds(node)
        node.args = (given(node, 0), _dim(node), int(mask[:start].sum()), int(mask[:end].sum()))
        node.kwargs = {}


def narrow(ties: Ties, node: Node) -> Value:
    """A run of a dimension, by start and length."""
    dims, dim = list(ties.of(given(node, 0))), _dim(node)
    labels = dims[dim]
    if labels is not None:
        start, length = given(node, 2), given(node, 3)
        dims[dim] = labels[start : start + length]
    return tuple(dims)


def rewrite_narrow(node: Node, kept: Kept) -> None:
    """Start and length are what is left of them."""
    mask = kept.mask(given(node, 0), _dim(node))
    if mask is not None:
        start, length = given(node, 2), given(node, 3)
        node.update_arg(2, int(mask[:start].sum()))
        node.update_arg(3, int(mask[start : start + length].sum()))


def select(ties: Ties, node: Node) -> Value:
    """One element of a dimension, which must stay; the dimension goes."""
    dims, dim = list(ties.of(given(node, 0))), _dim(node)
    labels = dims.pop(dim)
    if labels is not None:
        index = given(node, 2)
        ties.pin(labels[[index]] if isinstance(index, int) else labels, f"{node.name} picks this element")
    return tuple(dims)


def rewrite_select(node: Node, kept: Kept) -> None:
    """The index is what is left before it."""
    mask = kept.mask(given(node, 0), _dim(node))
    if mask is not None:
        index = int(given(node, 2)) % len(mask)
        node.update_arg(2, int(mask[:index].sum()))


def split(ties: Ties, node: Node) -> Value:
    """A dimension taken apart into runs."""
    dims, dim = ties.of(given(node, 0)), _dim(node, 2)
    sizes = _runs(node)
    labels = dims[dim]
    if labels is None:
        return (dims,) * len(sizes)
    runs = np.split(labels, np.cumsum(sizes)[:-1])
    for run in runs if len(set(sizes)) > 1 else []:  # equal runs are alike: the halves of a channel shuffle
        ties.part(run)
    return tuple((*dims[:dim], run, *dims[dim + 1 :]) for run in runs)


def _runs(node: Node) -> list[int]:
    dim, values = _dim(node, 2), node.meta["val"]
    return [int(v.shape[dim]) for v in values]


def rewrite_split(node: Node, kept: Kept) -> None:
    """Runs of what is left of each, which need no longer be equal."""
    dim = _dim(node, 2)
    mask = kept.mask(given(node, 0), dim)
    if mask is not None:
        parts = np.split(mask, np.cumsum(_runs(node))[:-1])
        node.target = aten.split_with_sizes.default
        node.args = (given(node, 0), [int(p.sum()) for p in parts], dim)
        node.kwargs = {}


def unbind(ties: Ties, node: Node) -> Value:
    """Every element of a dimension by itself: the dimension is left whole."""
    dims, dim = list(ties.of(given(node, 0))), _dim(node)
    ties.pin(dims.pop(dim), f"{node.name} takes it apart element by element")
    return (tuple(dims),) * len(node.meta["val"])


def item(ties: Ties, node: Node) -> Value:
    """One of several results."""
    values = ties.values.get(given(node, 0), ())
    value: Dims = values[given(node, 1)] if values and isinstance(values[0], tuple) else ()
    return value or (None,) * len(shape(node))


def pad(ties: Ties, node: Node) -> Value:
    """Zeros (or copies of the edge) put before and behind: constant ones are channels of their own."""
    dims, amounts = list(ties.of(given(node, 0))), list(given(node, 1))
    constant = argument(node, 2, "mode", "constant") == "constant" or node.target is aten.constant_pad_nd.default
    for i in range(len(amounts) // 2):
        dim, (before, behind) = len(dims) - 1 - i, amounts[2 * i : 2 * i + 2]
        labels = dims[dim]
        if labels is None or before == behind == 0:
            continue
        if constant and min(before, behind) >= 0:
            dims[dim] = np.concatenate([ties.fresh(before), labels, ties.fresh(behind)])
        else:
            ties.pin(labels, f"{node.name} pads it with copies of itself, or crops it")
            dims[dim] = None
    return tuple(dims)


def rewrite_pad(node: Node, kept: Kept) -> None:
    """As many zeros before and behind as are left of them."""
    amounts, rank = list(given(node, 1)), len(shape(node))
    for dim, mask in kept.masks(node).items():
        at = 2 * (rank - 1 - dim)
        if at < len(amounts) and amounts[at : at + 2] != [0, 0]:
            before, behind = amounts[at : at + 2]
            amounts[at : at + 2] = [int(mask[:before].sum()), int(mask[len(mask) - behind :].sum())]
    node.update_arg(1, amounts)


def indexed(ties: Ties, node: Node) -> Value:
    """Rows picked by tensors of indices: the dimensions that are picked from are left whole."""
    dims, indices = ties.of(given(node, 0)), list(given(node, 1))
    at = [d for d, index in enumerate(indices) if index is not None]
    for d in at:
        ties.pin(dims[d], f"{node.name} picks elements of it by index")
        for labels in ties.of(indices[d]):
            ties.pin(labels, f"{node.name} picks elements by it")
    rank = len(shape(node)) - (len(dims) - len(_consumed(indices)))
    first = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    rest = [x for d, x in enumerate(dims) if d not in at]
    return (*rest[:first], *(None,) * rank, *rest[first:]) if _plain(indices) else _whole(ties, node)


def _consumed(indices: list[Any]) -> list[int]:
    return [d for d, index in enumerate(indices) if index is not None]


def _plain(indices: list[Any]) -> bool:
    return all(i is None or i.meta["val"].dtype not in (torch.bool, torch.uint8) for i in indices)


def _whole(ties: Ties, node: Node) -> Value:
    for labels in ties.of(given(node, 0)):
        ties.pin(labels, f"{node.name} picks elements of it by a mask")
    return (None,) * len(shape(node))


def gather(ties: Ties, node: Node) -> Value:
    """Elements of one dimension picked by an index of the result's shape; the others are tied."""
    dims, index, dim = ties.of(given(node, 0)), list(ties.of(given(node, 2))), _dim(node)
    for d, labels in enumerate(dims):
        if d == dim:
            ties.pin(labels, f"{node.name} picks elements of it by index")
        elif shape(given(node, 0))[d] == shape(node)[d]:
            ties.tie(labels, index[d], f"{node.name} has an index that is left whole")
        else:
            ties.pin(labels, f"{node.name} picks a part of it")
            ties.pin(index[d], f"{node.name} picks a part by it")
            index[d] = None
    return tuple(index)


def index_select(ties: Ties, node: Node) -> Value:
    """Elements of one dimension picked by a tensor of indices: the dimension is left whole."""
    dims, dim = list(ties.of(given(node, 0))), _dim(node)
    ties.pin(dims[dim], f"{node.name} picks elements of it by index")
    dims[dim] = None
    return tuple(dims)


_SPLITS = [
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.split.sizes,
    aten.tensor_split.sections,
]
RULES: dict[Any, Rule] = {
    **{op: Rule(cat) for op in (aten.cat.default, aten.concat.default, aten.concatenate.default)},
    aten.stack.default: Rule(stack),
    aten.slice.Tensor: Rule(slices, rewrite_slice),
    aten.narrow.default: Rule(narrow, rewrite_narrow),
    aten.select.int: Rule(select, rewrite_select),
    **{op: Rule(split, rewrite_split) for op in _SPLITS},
    aten.unbind.int: Rule(unbind),
    operator.getitem: Rule(item),
    **{op: Rule(pad, rewrite_pad) for op in (aten.pad.default, aten.constant_pad_nd.default)},
    aten.index.Tensor: Rule(indexed),
    aten.gather.default: Rule(gather),
    aten.index_select.default: Rule(index_select),
}
