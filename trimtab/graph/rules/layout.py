"""Operators that move, pick, join, pad or repeat whole dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.ties import Kept, Labels, Rule, Ties, Value, argument, given, shape
from trimtab.graph.rules.views import resized

aten = torch.ops.aten


def _dim(node: Node, at: int = 1, name: str = "dim", default: int = 0) -> int:
    return int(argument(node, at, name, default)) % max(len(shape(given(node, 0))), 1)


def permute(ties: Ties, node: Node) -> Value:
    """Dimensions in another order."""
    dims = ties.of(given(node, 0))
    return tuple(dims[d] for d in given(node, 1))


def transpose(ties: Ties, node: Node) -> Value:
    """Two dimensions exchanged (the last two where none are named)."""
    dims = list(ties.of(given(node, 0)))
    last = (0, 1) if len(dims) == 2 else (-1, -2)
    a, b = (given(node, 1), given(node, 2)) if len(node.args) == 3 else last
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def movedim(ties: Ties, node: Node) -> Value:
    """Dimensions moved to other places."""
    dims, rank = ties.of(given(node, 0)), len(shape(node))
    source, target = (([d] if isinstance(d, int) else list(d)) for d in (given(node, 1), given(node, 2)))
    moved = {t % rank: s % rank for s, t in zip(source, target, strict=True)}
    rest = iter(d for d in range(rank) if d not in moved.values())
    return tuple(dims[moved[d] if d in moved else next(rest)] for d in range(rank))


def unsqueeze(ties: Ties, node: Node) -> Value:
    """A dimension of one element put in."""
    dims, at = list(ties.of(given(node, 0))), int(given(node, 1))
    dims.insert(at % (len(dims) + 1), None)
    return tuple(dims)


def squeeze(ties: Ties, node: Node) -> Value:
    """Dimensions of one element taken out."""
    sizes, dims = shape(given(node, 0)), ties.of(given(node, 0))
    over: Any = given(node, 1) if len(node.args) > 1 else list(range(len(sizes)))
    over = [d % len(sizes) for d in ([over] if isinstance(over, int) else over)]
    gone = [d for d in over if sizes[d] == 1]
    for d in gone:
        ties.pin(dims[d], f"{node.name} takes out a dimension of one element")
    return tuple(x for d, x in enumerate(dims) if d not in gone)


def expand(ties: Ties, node: Node) -> Value:
    """Dimensions of one element, or new ones, repeated: their copies may be cut like any channel."""
    dims, sizes, out = ties.of(given(node, 0)), shape(given(node, 0)), shape(node)
    result: list[Labels | None] = []
    for d, size in enumerate(out):
        at = d - len(out) + len(sizes)
        if at >= 0 and sizes[at] == size:
            result.append(dims[at])
            continue
        if at >= 0:
            ties.pin(dims[at], f"{node.name} repeats its one element")
        result.append(ties.fresh(size))
    return tuple(result)


def rewrite_sizes(node: Node, kept: Kept) -> None:
    """The sizes are what is left of them."""
    node.update_arg(1, resized(node, given(node, 1), kept))


def expand_as(ties: Ties, node: Node) -> Value:
    """Dimensions of one element repeated to the size of another tensor's."""
    dims, like, sizes = ties.of(given(node, 0)), ties.of(given(node, 1)), shape(given(node, 0))
    out = list(like)
    for at in range(1, len(dims) + 1):
        if sizes[-at] == shape(node)[-at]:
            ties.tie(dims[-at], like[-at], f"{node.name} takes the shape of an input that is left whole")
            out[-at] = None if like[-at] is None else dims[-at]
        else:
            ties.pin(dims[-at], f"{node.name} repeats its one element")
    return tuple(out)


def repeat(ties: Ties, node: Node) -> Value:
    """A tensor laid beside itself."""
    times, dims, sizes = _times(node), ties.of(given(node, 0)), shape(given(node, 0))
    new = len(times) - len(dims)
    result: list[Labels | None] = [None] * new
    for count, labels, size in zip(times[new:], dims, sizes, strict=True):
        if labels is None or count == 1:
            whole = labels is None and size == 1 and isinstance(count, int) and count > 1
            result.append(ties.fresh(count) if whole else labels)
        else:  # a count that the batch gives has its value at the example batch
            result.append(np.tile(labels, count if isinstance(count, int) else int(count.meta["val"])))
    return tuple(result)


def _times(node: Node) -> list[Any]:
    """How often each dimension of the result repeats its source; `tile` may name the last ones only."""
    times = list(given(node, 1))
    return [1] * (len(shape(given(node, 0))) - len(times)) + times


def rewrite_repeat(node: Node, kept: Kept) -> None:
    """One element that was repeated is repeated as often as is left."""
    times = _times(node)
    new = len(times) - len(shape(given(node, 0)))
    for dim, mask in kept.masks(node).items():
        if dim >= new and shape(given(node, 0))[dim - new] == 1:
            times[dim] = int(mask.sum())
    node.update_arg(1, times)


def repeat_interleave(ties: Ties, node: Node) -> Value:
    """Each element of a dimension repeated."""
    dims, dim = list(ties.of(given(node, 0))), argument(node, 2, "dim")
    if dim is None:
        for labels in dims:
            ties.pin(labels, f"{node.name} flattens it")
        return (None,)
    dims[dim] = None if dims[dim] is None else np.repeat(dims[dim], int(given(node, 1)))
    return tuple(dims)


def flip(ties: Ties, node: Node) -> Value:
    """Dimensions in reverse order."""
    over = [d % len(shape(node)) for d in given(node, 1)]
    return tuple(x[::-1] if d in over and x is not None else x for d, x in enumerate(ties.of(given(node, 0))))


def roll(ties: Ties, node: Node) -> Value:
    """Dimensions that are shifted round are left whole."""
    dims = list(ties.of(given(node, 0)))
    over: Any = argument(node, 2, "dims") or range(len(dims))
    for d in over:
        ties.pin(dims[d], f"{node.name} shifts it round")
        dims[d] = None
    return tuple(dims)


def filled(ties: Ties, node: Node) -> Value:
    """A new tensor of one value, of any size: its channels may be cut like any other."""
    return tuple(ties.fresh(n) if n > 1 else None for n in shape(node))


def rewrite_filled(node: Node, kept: Kept) -> None:
    """The size is what is left of it."""
    at = 1 if str(node.target).startswith("aten.new") else 0
    node.update_arg(at, resized(node, node.args[at], kept))


def triangle(ties: Ties, node: Node) -> Value:
    """The last two dimensions are left whole."""
    dims = ties.of(given(node, 0))
    for labels in dims[-2:]:
        ties.pin(labels, f"{node.name} looks at positions in it")
    return (*dims[:-2], None, None)


_FILLED = [
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
]  # fmt: skip
_TRANSPOSES = [
    aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default, aten.adjoint.default,
    aten.swapaxes.default, aten.swapdims.default,
]  # fmt: skip
_MOVES = (aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
RULES: dict[Any, Rule] = {
    aten.permute.default: Rule(permute),
    **{op: Rule(transpose) for op in _TRANSPOSES},
    **{op: Rule(movedim) for op in _MOVES},
    aten.unsqueeze.default: Rule(unsqueeze),
    **{op: Rule(squeeze) for op in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)},
    **{op: Rule(expand, rewrite_sizes) for op in (aten.expand.default, aten.broadcast_to.default)},
    aten.expand_as.default: Rule(expand_as),
    **{op: Rule(repeat, rewrite_repeat) for op in (aten.repeat.default, aten.tile.default)},
    aten.repeat_interleave.self_int: Rule(repeat_interleave),
    aten.flip.default: Rule(flip),
    aten.roll.default: Rule(roll),
    **{op: Rule(filled, rewrite_filled) for op in _FILLED},
    **{op: Rule(triangle) for op in (aten.tril.default, aten.triu.default)},
}
