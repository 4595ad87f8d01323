"""Linear layers, matrix products, embeddings and attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from trimtab.graph.rules.elementwise import broadcast
from trimtab.graph.rules.ties import Dims, Kept, Labels, Rule, Ties, Value, argument, given, shape

aten = torch.ops.aten


def linear(ties: Ties, node: Node) -> Value:
    """y = x W' + b, W of (out, in)."""
    x, weight = ties.of(given(node, 0)), ties.of(given(node, 1))
    ties.tie(x[-1], weight[-1], f"{node.name} reads an input that is left whole")
    if len(weight) == 1:
        return x[:-1]
    bias = argument(node, 2, "bias")
    if isinstance(bias, Node):
        ties.tie(weight[0], ties.of(bias)[0], "")
    ties.produce(given(node, 1), 0)
    return (*x[:-1], weight[0])


def matmul(ties: Ties, node: Node) -> Value:
    """C = A B over the last dimension of A and the one before last of B; the others broadcast."""
    a, b = given(node, 0), given(node, 1)
    return _product(ties, node, a, b)


def _product(ties: Ties, node: Node, a: Node, b: Node) -> Dims:
    left, right = ties.of(a), ties.of(b)
    inner = right[-2] if len(right) > 1 else right[0]
    ties.tie(left[-1], inner, f"{node.name} sums over it with an input that is left whole")
    tail: Dims = (left[-2],) if len(left) > 1 else ()
    if len(right) > 1:
        tail = (*tail, right[-1])
        ties.produce(b, -1)
    batch = [n for n in (a, b) if len(shape(n)) > 2]
    rank = len(shape(node)) - len(tail)
    return (*broadcast(ties, node, batch, rank), *tail)


def addmm(ties: Ties, node: Node) -> Value:
    """C = b + A B."""
    dims = _product(ties, node, given(node, 1), given(node, 2))
    bias = given(node, 0)
    for dim in range(1, len(shape(bias)) + 1):
        if shape(bias)[-dim] == shape(node)[-dim]:
            ties.tie(dims[-dim], ties.of(bias)[-dim], f"{node.name} adds a term that is left whole")
    return dims


def embedding(ties: Ties, node: Node) -> Value:
    """Rows of a table (vocabulary, width) by index: the width is cut, the vocabulary is not."""
    table = ties.of(given(node, 0))
    ties.pin(table[0], f"{node.name} picks its rows by the data")
    ties.produce(given(node, 0), 1)
    return (*ties.of(given(node, 1)), table[1])


def attention(ties: Ties, node: Node) -> Value:
    """softmax(Q K' / sqrt(d) + mask) V, each of (batch, heads, length, d)."""
    q, k, v = (n for n in node.args[:3])
    one, two, three = ties.of(q), ties.of(k), ties.of(v)
    why = f"{node.name} meets an input that is left whole"
    for a, b in ((one[-1], two[-1]), (two[-2], three[-2])):
        ties.tie(a, b, why)
    for source, dims in ((q, one), (k, two), (v, three)):
        for dim in range(len(dims) - 2):
            if dims[dim] is None and shape(source)[dim] > 1 and one[dim] is not None:
                ties.pin(one[dim], why)
    heads: list[Labels | None] = [
        _heads(ties, (a, b, c), why) for a, b, c in zip(one[:-2], two[:-2], three[:-2], strict=True)
    ]
    dims = (*heads, one[-2], three[-1])
    mask = argument(node, 3, "attn_mask")
    if isinstance(mask, Node):
        _masked(ties, node, mask, (*heads, one[-2], two[-2]))
    return dims


def _heads(ties: Ties, each: tuple[Labels | None, ...], why: str) -> Labels | None:
    """Query heads tied to key and value heads; with fewer of those, each serves a run of query heads."""
    query = each[0]
    for other in each[1:]:
        if query is None or other is None:
            ties.pin(query if other is None else other, why)
        elif len(other) == len(query):
            ties.tie(query, other, why)
        else:
            ties.tie(query, np.repeat(other, len(query) // len(other)), why)
    return query


def _masked(ties: Ties, node: Node, mask: Node, dims: Dims) -> None:
    sizes, labels = shape(mask), ties.of(mask)
    for dim in range(1, len(sizes) + 1):
        if sizes[-dim] == 1:
            continue
        ties.tie(dims[-dim], labels[-dim], f"{node.name} has a mask that is left whole")


def rewrite_attention(node: Node, kept: Kept) -> None:
    """The scale 1 / sqrt(d) stays that of the uncut width."""
    if kept.mask(given(node, 0), len(shape(given(node, 0))) - 1) is not None and node.kwargs.get("scale") is None:
        node.update_kwarg("scale", 1 / math.sqrt(shape(given(node, 0))[-1]))


def einsum(ties: Ties, node: Node) -> Value:
    """Letters that are the same are tied; an ellipsis stands for letters of its own, counted from the right."""
    equation, inputs = str(given(node, 0)).replace(" ", ""), list(given(node, 1))
    if "->" not in equation:
        for arg in inputs:
            for dim in ties.of(arg):
                ties.pin(dim, f"{node.name} has an equation without a result")
        return (None,) * len(shape(node))
    letters: dict[str, Labels | None] = {}
    sizes: dict[str, int] = {}
    terms, out = equation.split("->")
    for short, arg in zip(terms.split(","), inputs, strict=True):
        term = _spelt(short, len(shape(arg)))
        for letter, labels, size in zip(term, ties.of(arg), shape(arg), strict=True):
            if sizes.get(letter, 1) == 1:
                letters[letter], sizes[letter] = labels, size
            elif size > 1:
                ties.tie(letters[letter], labels, f"{node.name} meets an input that is left whole")
    return tuple(letters[letter] for letter in _spelt(out, len(shape(node))))


def _spelt(term: str, rank: int) -> str:
    """A term with its ellipsis written as digits that count dimensions from the right."""
    return term.replace("...", "".join(str(i) for i in reversed(range(rank - len(term) + 3))))


RULES: dict[Any, Rule] = {
    aten.linear.default: Rule(linear),
    **{op: Rule(matmul) for op in (aten.matmul.default, aten.mm.default, aten.bmm.default)},
    **{op: Rule(addmm) for op in (aten.addmm.default, aten.baddbmm.default)},
    aten.embedding.default: Rule(embedding),
    aten.scaled_dot_product_attention.default: Rule(attention, rewrite_attention),
    aten.einsum.default: Rule(einsum),
}
