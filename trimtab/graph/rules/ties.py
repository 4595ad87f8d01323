"""Labels of dimension elements: which indices of which tensors stand for the same channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Dims = tuple[Labels | None, ...]
"""One entry for each dimension of a tensor: a label for each index, or `None` where nothing can be removed."""
Value = Dims | tuple[Dims, ...]
"""The labels of a node's result: of one tensor, or of each of several."""


def shape(node: Any) -> tuple[int, ...]:
    """The shape at the example batch of a node's tensor, `()` for anything that is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def given(node: Node, index: int) -> Any:
    """An argument by position."""
    return node.args[index]


def set_argument(node: Node, index: int, name: str, value: Any) -> None:
    """Write an argument where it stands, by position or else by name."""
    if len(node.args) > index:
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


class Ties:
    """Labels and which of them are one (a union-find), which must stay, and why.

    Rules read the labels of a node's inputs with `of`, tie and pin them, and return its result's.
    """

    def __init__(self) -> None:
        self._parent: Labels = np.arange(1024, dtype=np.int64)
        self._count = 0
        self.values: dict[Node, Value] = {}
        self.pins: list[tuple[Labels, str]] = []
        self.hidden: list[Labels] = []
        self.producers: list[tuple[Node, int]] = []
        self.parts: list[Labels] = []

    def __len__(self) -> int:
        return self._count

    def of(self, node: Any) -> Dims:
        """The labels of one tensor; all `None` for a number or a node without a rule."""
        value: Any = self.values.get(node, ()) if isinstance(node, Node) else ()
        if value and isinstance(value[0], tuple):
            return ()
        dims: Dims = value or (None,) * len(shape(node))
        return dims

    def fresh(self, count: int) -> Labels:
        """Labels that are tied to nothing yet."""
        start, self._count = self._count, self._count + count
        while self._count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.arange(len(self._parent), 2 * len(self._parent))])
        return np.arange(start, self._count, dtype=np.int64)

    def find(self, labels: Labels) -> Labels:
        """The label that stands for each label's class."""
        root = self._parent[labels]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                return root
            root = above

    def tie(self, a: Labels | None, b: Labels | None, why: str) -> None:
        """Make two dimensions one, index by index; if one has no labels, the other must stay."""
        if a is None or b is None:
            self.pin(a if b is None else b, why)
            return
        one, two = self.find(a), self.find(b)
        differ = one != two
        one, two = np.minimum(one, two)[differ], np.maximum(one, two)[differ]
        if len(np.unique(two)) == len(two) and not np.isin(two, one).any():
            self._parent[two] = one
            return
        for x, y in zip(one.tolist(), two.tolist(), strict=True):
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def _root(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            label = above
        return label

    def tie_rows(self, rows: Labels, why: str) -> Labels:
        """Make each row of a matrix of labels one unit, and return its first column."""
        for column in range(1, rows.shape[1]):
            self.tie(rows[:, 0], rows[:, column], why)
        return np.ascontiguousarray(rows[:, 0])

    def pin(self, labels: Labels | None, why: str) -> None:
        """Keep labels whole, for a reason that the user will read."""
        if labels is not None and labels.size:
            self.pins.append((labels.reshape(-1), why))

    def hide(self, labels: Labels | None) -> None:
        """Keep labels whole that are no channels at all (a kernel's height), and don't speak of it."""
        if labels is not None:
            self.hidden.append(labels)

    def produce(self, node: Any, dim: int) -> None:
        """Remember that this parameter's dimension makes channels (not only reads them)."""
        if isinstance(node, Node) and node.op == "get_attr" and shape(node):
            self.producers.append((node, dim % len(shape(node))))

    def part(self, labels: Labels) -> None:
        """Remember that these channels are taken apart from others of the same layer, for another use."""
        self.parts.append(labels)


class Kept:
    """What is left of each tensor in a cut, for the rules that rewrite a node's arguments."""

    def __init__(self, values: dict[Node, Value], keep: Callable[[Labels], Bools]) -> None:
        self._values = values
        self._keep = keep

    def alias(self, new: Node, old: Node) -> None:
        """Let one node have the labels of another."""
        self._values[new] = self._values[old]

    def mask(self, node: Any, dim: int, item: int = 0) -> Bools | None:
        """Which indices stay, or `None` where the dimension stays whole (`item`: of which result)."""
        value = self._values.get(node, ())
        dims: Any = value[item] if value and isinstance(value[0], tuple) else value
        if not dims or dims[dim] is None:
            return None
        mask = self._keep(dims[dim])
        return None if mask.all() else mask

    def masks(self, node: Any, item: int = 0) -> dict[int, Bools]:
        """Dimension to mask, for the dimensions that are cut."""
        value = self._values.get(node, ())
        dims = value[item] if value and isinstance(value[0], tuple) else value
        found = {d: self.mask(node, d, item) for d in range(len(dims))}
        return {d: m for d, m in found.items() if m is not None}


@dataclass(frozen=True)
class Rule:
    """How an operator carries labels, and how its baked-in arguments are rewritten when it is cut.

    Args:
        label: ties the node's inputs and returns its result's labels.
        rewrite: changes the node's arguments in place (`Kept` is keyed by the node itself); `None`
            where no argument names a size.
        counts: the dimensions of the first argument whose number of elements the result depends on
            (a mean, a softmax), where a removed channel is not the same as a zero.
    """

    label: Callable[[Ties, Node], Value]
    rewrite: Callable[[Node, Kept], None] | None = None
    counts: Callable[[Node], Sequence[int]] | None = None
