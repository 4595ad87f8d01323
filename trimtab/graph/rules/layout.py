"""Operators that move, pick, join, pad or repeat whole dimensions."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Dims, Kept, Labels, Rule, Ties, Value, argument, set_argument, shape
from trimtab.graph.rules.views import resized

aten = torch.ops.aten


def _dim(node: Node, at: int = 1, name: str = "dim", default: int = 0) -> int:
    return int(argument(node, at, name, default)) % max(len(shape(node.args[0])), 1)


def permute(ties: Ties, node: Node) -> Value:
    """Dimensions in another order."""
    dims = ties.of(node.args[0])
    return tuple(dims[d] for d in node.args[1])  # type: ignore


def transpose(ties: Ties, node: Node) -> Value:
    """Two dimensions exchanged (the last two where none are named)."""
    dims = list(ties.of(node.args[0]))
    a, b = node.args[1:3] if len(node.args) == 3 else ((0, 1) if len(dims) == 2 else (-1, -2))
    dims[a], dims[b] = dims[b], dims[a]  # type: ignore
    return tuple(dims)


def unsqueeze(ties: Ties, node: Node) -> Value:
    """A dimension of one element put in."""
    dims, at = list(ties.of(node.args[0])), int(node.args[1])  # type: ignore[arg-type]
    dims.insert(at % (len(dims) + 1), None)
    return tuple(dims)


def squeeze(ties: Ties, node: Node) -> Value:
    """Dimensions of one element taken out."""
    sizes, dims = shape(node.args[0]), ties.of(node.args[0])
    over: Any = node.args[1] if len(node.args) > 1 else list(range(len(sizes)))
    over = [d % len(sizes) for d in ([over] if isinstance(over, int) else over)]
    gone = [d for d in over if sizes[d] == 1]
    for d in gone:
        ties.pin(dims[d], f"{node.name} takes out a dimension of one element")
    return tuple(x for d, x in enumerate(dims) if d not in gone)


def expand(ties: Ties, node: Node) -> Value:
    """Dimensions of one element, or new ones, repeated: their copies may be cut like any channel."""
    dims, sizes, out = ties.of(node.args[0]), shape(node.args[0]), shape(node)
    asked: Any = node.args[1]
    result: list[Labels | None] = []
    for d, size in enumerate(out):
        at = d - len(out) + len(sizes)
        if at >= 0 and sizes[at] == size:
            result.append(dims[at])
            continue
        if at >= 0:
            ties.pin(dims[at], f"{node.name} repeats its one element")
        result.append(ties.fresh(size) if isinstance(asked[d], int) else None)
    return tuple(result)


def rewrite_sizes(node: Node, kept: Kept) -> None:
    """The sizes are what is left of them."""
    node.update_arg(1, resized(node, node.args[1], kept))


def repeat(ties: Ties, node: Node) -> Value:
    """A tensor laid beside itself."""
    times, dims, sizes = list(node.args[1]), ties.of(node.args[0]), shape(node.args[0])  # type: ignore
    new = len(times) - len(dims)
    result: list[Labels | None] = [None] * new
    for count, labels, size in zip(times[new:], dims, sizes, strict=True):
        if labels is None or count == 1:
            whole = labels is None and size == 1 and isinstance(count, int) and count > 1
            result.append(ties.fresh(count) if whole else labels)
        elif isinstance(count, int):
            result.append(np.tile(labels, count))
        else:
            ties.pin(labels, f"{node.name} repeats it as often as the batch says")
            result.append(None)
    return tuple(result)


def rewrite_repeat(node: Node, kept: Kept) -> None:
    """One element that was repeated is repeated as often as is left."""
    times, new = list(node.args[1]), len(node.args[1]) - len(shape(node.args[0]))  # type: ignore
    for dim, mask in kept.masks(node).items():
        if dim >= new and shape(node.args[0])[dim - new] == 1:
            times[dim] = int(mask.sum())
    node.update_arg(1, times)


def repeat_interleave(ties: Ties, node: Node) -> Value:
    """Each element of a dimension repeated."""
    dims, dim = list(ties.of(node.args[0])), argument(node, 2, "dim")
    if dim is None:
        for labels in dims:
            ties.pin(labels, f"{node.name} flattens it")
        return (None,)
    dims[dim] = None if dims[dim] is None else np.repeat(dims[dim], int(node.args[1]))  # type: ignore
    return tuple(dims)


def cat(ties: Ties, node: Node) -> Value:
    """Tensors joined along one dimension: their labels one after another."""
    parts: list[Node] = [n for n in node.args[0] if shape(n) != (0,)]  # type: ignore
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
    parts: list[Node] = list(node.args[0])  # type: ignore
    dim = int(argument(node, 1, "dim", 0)) % len(shape(node))
    result = list(ties.of(parts[0]))
    for part in parts[1:]:
        for d, labels in enumerate(ties.of(part)):
            ties.tie(result[d], labels, f"{node.name} joins it with an input that is left whole")
            result[d] = None if labels is None else result[d]
    result.insert(dim, None)
    return tuple(result)


def _bounds(node: Node) -> tuple[int, int, int]:
    size = shape(node.args[0])[_dim(node)]
    start, end, step = argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    if not all(n is None or isinstance(n, int) for n in (start, end, step)):
        return 0, -1, 1
    return slice(start, end).indices(size)[0], slice(start, end).indices(size)[1], int(step)


def slices(ties: Ties, node: Node) -> Value:
    """A run of a dimension; with a step above one, or bounds that depend on the batch, it is left whole."""
    dims, dim = list(ties.of(node.args[0])), _dim(node)
    if dims[dim] is not None:
        start, end, step = _bounds(node)
        if step != 1 or end < 0:
            ties.pin(dims[dim], f"{node.name} picks single elements of it")
            dims[dim] = None
        else:
            dims[dim] = dims[dim][start:end]  # type: ignore[index]
    return tuple(dims)


def rewrite_slice(node: Node, kept: Kept) -> None:
    """The bounds are what is left before them."""
    mask = kept.mask(node.args[0], _dim(node))
    if mask is not None:
        start, end, _ = _bounds(node)
        node.args = (node.args[0], _dim(node), int(mask[:start].sum()), int(mask[:end].sum()))
        node.kwargs = {}


def narrow(ties: Ties, node: Node) -> Value:
    """A run of a dimension, by start and length."""
    dims, dim = list(ties.of(node.args[0])), _dim(node)
    if dims[dim] is not None:
        start, length = node.args[2:4]
        dims[dim] = dims[dim][start : start + length]  # type: ignore
    return tuple(dims)


def rewrite_narrow(node: Node, kept: Kept) -> None:
    """Start and length are what is left of them."""
    mask = kept.mask(node.args[0], _dim(node))
    if mask is not None:
        start, length = (int(n) for n in node.args[2:4])  # type: ignore[arg-type]
        node.update_arg(2, int(mask[:start].sum()))
        node.update_arg(3, int(mask[start : start + length].sum()))


def select(ties: Ties, node: Node) -> Value:
    """One element of a dimension, which must stay; the dimension goes."""
    dims, dim = list(ties.of(node.args[0])), _dim(node)
    labels = dims.pop(dim)
    if labels is not None:
        index = node.args[2]
        ties.pin(labels[[index]] if isinstance(index, int) else labels, f"{node.name} picks this element")
    return tuple(dims)


def rewrite_select(node: Node, kept: Kept) -> None:
    """The index is what is left before it."""
    mask = kept.mask(node.args[0], _dim(node))
    if mask is not None:
        index = int(node.args[2]) % len(mask)  # type: ignore[arg-type]
        node.update_arg(2, int(mask[:index].sum()))


def split(ties: Ties, node: Node) -> Value:
    """A dimension taken apart into runs."""
    dims, dim = ties.of(node.args[0]), _dim(node, 2)
    sizes = _runs(node)
    if dims[dim] is None:
        return (dims,) * len(sizes)
    runs = np.split(dims[dim], np.cumsum(sizes)[:-1])
    return tuple((*dims[:dim], run, *dims[dim + 1 :]) for run in runs)


def _runs(node: Node) -> list[int]:
    dim, values = _dim(node, 2), node.meta["val"]
    return [int(v.shape[dim]) for v in values]


def rewrite_split(node: Node, kept: Kept) -> None:
    """Runs of what is left of each, which need no longer be equal."""
    dim = _dim(node, 2)
    mask = kept.mask(node.args[0], dim)
    if mask is not None:
        parts = np.split(mask, np.cumsum(_runs(node))[:-1])
        node.target = aten.split_with_sizes.default
        node.args = (node.args[0], [int(p.sum()) for p in parts], dim)
        node.kwargs = {}


def unbind(ties: Ties, node: Node) -> Value:
    """Every element of a dimension by itself: the dimension is left whole."""
    dims, dim = list(ties.of(node.args[0])), _dim(node)
    ties.pin(dims.pop(dim), f"{node.name} takes it apart element by element")
    return (tuple(dims),) * len(node.meta["val"])


def item(ties: Ties, node: Node) -> Value:
    """One of several results."""
    values = ties.values.get(node.args[0], ())  # type: ignore[arg-type]
    value: Dims = values[node.args[1]] if values and isinstance(values[0], tuple) else ()  # type: ignore
    return value or (None,) * len(shape(node))


def pad(ties: Ties, node: Node) -> Value:
    """Zeros (or copies of the edge) put before and behind: constant ones are channels of their own."""
    dims, amounts = list(ties.of(node.args[0])), list(node.args[1])  # type: ignore
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
    amounts, rank = list(node.args[1]), len(shape(node))  # type: ignore
    for dim, mask in kept.masks(node).items():
        at = 2 * (rank - 1 - dim)
        if at < len(amounts) and amounts[at : at + 2] != [0, 0]:
            before, behind = amounts[at : at + 2]
            amounts[at : at + 2] = [int(mask[:before].sum()), int(mask[len(mask) - behind :].sum())]
    node.update_arg(1, amounts)


def flip(ties: Ties, node: Node) -> Value:
    """Dimensions in reverse order."""
    over = [d % len(shape(node)) for d in node.args[1]]  # type: ignore
    return tuple(x[::-1] if d in over and x is not None else x for d, x in enumerate(ties.of(node.args[0])))


def roll(ties: Ties, node: Node) -> Value:
    """Dimensions that are shifted round are left whole."""
    dims = list(ties.of(node.args[0]))
    over: Any = argument(node, 2, "dims") or range(len(dims))
    for d in over:
        ties.pin(dims[d], f"{node.name} shifts it round")
        dims[d] = None
    return tuple(dims)


def filled(ties: Ties, node: Node) -> Value:
    """A new tensor of one value, of any size: its channels may be cut like any other."""
    sizes: Any = node.args[1 if str(node.target).startswith("aten.new") else 0]
    return tuple(ties.fresh(n) if isinstance(n, int) and n > 1 else None for n in sizes)


def rewrite_filled(node: Node, kept: Kept) -> None:
    """The size is what is left of it."""
    at = 1 if str(node.target).startswith("aten.new") else 0
    node.update_arg(at, resized(node, node.args[at], kept))


def indexed(ties: Ties, node: Node) -> Value:
    """Rows picked by tensors of indices: the dimensions that are picked from are left whole."""
    dims, indices = ties.of(node.args[0]), list(node.args[1])  # type: ignore
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
    for labels in ties.of(node.args[0]):
        ties.pin(labels, f"{node.name} picks elements of it by a mask")
    return (None,) * len(shape(node))


def index_select(ties: Ties, node: Node) -> Value:
    """Elements of one dimension picked by a tensor of indices: the dimension is left whole."""
    dims, dim = list(ties.of(node.args[0])), _dim(node)
    ties.pin(dims[dim], f"{node.name} picks elements of it by index")
    dims[dim] = None
    return tuple(dims)


def triangle(ties: Ties, node: Node) -> Value:
    """The last two dimensions are left whole."""
    dims = ties.of(node.args[0])
    for labels in dims[-2:]:
        ties.pin(labels, f"{node.name} looks at positions in it")
    return (*dims[:-2], None, None)


_SPLITS = [aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes]
_FILLED = [
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
]  # fmt: skip
RULES = {
    aten.permute.default: Rule(permute),
    **{op: Rule(transpose) for op in (aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default)},
    aten.unsqueeze.default: Rule(unsqueeze),
    **{op: Rule(squeeze) for op in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)},
    aten.expand.default: Rule(expand, rewrite_sizes),
    aten.repeat.default: Rule(repeat, rewrite_repeat),
    aten.repeat_interleave.self_int: Rule(repeat_interleave),
    aten.cat.default: Rule(cat),
    aten.stack.default: Rule(stack),
    aten.slice.Tensor: Rule(slices, rewrite_slice),
    aten.narrow.default: Rule(narrow, rewrite_narrow),
    aten.select.int: Rule(select, rewrite_select),
    **{op: Rule(split, rewrite_split) for op in _SPLITS},
    aten.unbind.int: Rule(unbind),
    operator.getitem: Rule(item),
    **{op: Rule(pad, rewrite_pad) for op in (aten.pad.default, aten.constant_pad_nd.default)},
    aten.flip.default: Rule(flip),
    aten.roll.default: Rule(roll),
    **{op: Rule(filled, rewrite_filled) for op in _FILLED},
    aten.index.Tensor: Rule(indexed),
    aten.index_select.default: Rule(index_select),
    **{op: Rule(triangle) for op in (aten.tril.default, aten.triu.default)},
}
