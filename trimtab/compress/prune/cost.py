"""Cost: multiply-accumulates or parameters of a network as a function of how many units each group keeps. Exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from trimtab.compress.allocate import Factor
from trimtab.compress.prune.units import Numbers, numbers
from trimtab.core.errors import InputError
from trimtab.graph.coupling import Group, attribute, couple
from trimtab.graph.macs import macs
from trimtab.graph.model import Graph, shaped
from trimtab.graph.rules.ties import shape

CostName = Literal["macs", "params"]
Choices = Mapping[str, Sequence[Sequence[int]]]
"""For each group's name the units that each choice keeps; the first keeps all."""
Kept = dict[int, int]
"""The choice of each group, by its index; the first where it is not named."""
_COMBINATIONS = 4096
"""At most so many choices of three groups or more are counted together."""
_Lengths = Callable[[Kept], int]
_Dim = tuple[int, Mapping[int, npt.NDArray[np.int64]]]
"""How many indices of a dimension always stay, and for each group how many each of its choices keeps."""


def cost_factors(graph: Graph, groups: Sequence[Group], choices: Choices, cost: CostName) -> tuple[float, list[Factor]]:
    """What the network costs with nothing cut, and factors whose sum is what each choice adds to that.

    A layer's cost is a product of its widths, and a width is a sum over groups, so that

    cost(x) = cost(0) + sum_g d_g(x_g) + sum_(g, h) d_gh(x_g, x_h)

    Args:
        graph: the network.
        groups: that can be cut.
        choices: what may be kept of each.
        cost: `macs` of a batch of one, or `params`.

    Raises:
        InputError: a layer's cost is the product of three widths or more, with too many choices.
    """
    own = tuple(groups)
    width = _Widths(numbers(couple(graph), own), own, choices)
    counted = _macs(graph, width) if cost == "macs" else _params(graph, width)
    whole, sums = 0, _Sums([len(choices[g.name]) for g in own], own)
    for touched, count in counted:
        whole += count({})
        sums.add(touched, count)
    return float(whole), sums.factors(cost)


@dataclass(frozen=True)
class _Widths:
    """How long a dimension is that holds units of some groups, for each choice of them."""

    found: Numbers
    groups: tuple[Group, ...]
    choices: Choices

    def of(self, value: Any, sizes: Sequence[int]) -> list[_Dim]:
        """For each dimension of a tensor what always stays, and for each group what each of its choices keeps."""
        result: list[_Dim] = []
        for dim, size in enumerate(sizes):
            labels = value[dim] if dim < len(value) else None
            if not isinstance(labels, np.ndarray):
                result.append((size, {}))
                continue
            group, unit = self.found.of(labels)
            lengths = {int(i): self._lengths(int(i), unit[group == i]) for i in np.unique(group[group >= 0])}
            result.append((int((group < 0).sum()), lengths))
        return result

    def _lengths(self, index: int, units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        group = self.groups[index]
        counts = np.bincount(units, minlength=group.size)
        return np.array([counts[list(keep)].sum() for keep in self.choices[group.name]], dtype=np.int64)


def _length(dim: _Dim, kept: Kept) -> int:
    return dim[0] + sum(int(lengths[kept.get(index, 0)]) for index, lengths in dim[1].items())


def _params(graph: Graph, width: _Widths) -> list[tuple[tuple[int, ...], _Lengths]]:
    """Each parameter once: the groups that it depends on, and its number of elements."""
    learnt = {id(p) for p in graph.net.parameters()}
    found: list[tuple[tuple[int, ...], _Lengths]] = []
    for node in graph.net.graph.nodes:
        tensor = attribute(graph.net, str(node.target)) if node.op == "get_attr" else None
        if id(tensor) in learnt:
            learnt.remove(id(tensor))
            dims = width.of(width.found.coupling.values.get(node, ()), shape(node))
            found.append((_touched(dims), partial(_product, dims)))
    return found


def _product(dims: Sequence[_Dim], kept: Kept) -> int:
    return math.prod(_length(dim, kept) for dim in dims)


def _macs(graph: Graph, width: _Widths) -> list[tuple[tuple[int, ...], _Lengths]]:
    """Each product: the groups that it depends on, and its multiply-accumulates."""
    single = {n.name: n for n in shaped(graph.copy(), 1).net.graph.nodes}  # shapes of a batch of one
    values = width.found.coupling.values
    found: list[tuple[tuple[int, ...], _Lengths]] = []
    for node in graph.nodes():
        if macs(node) == 0:
            continue
        dims = {n: width.of(values.get(n, ()), shape(single[n.name])) for n in (node, *node.all_input_nodes)}
        touched = tuple(sorted({i for each in dims.values() for i in _touched(each)}))
        found.append((touched, partial(_at, node, dims, single)))
    return found


def _at(node: Node, dims: Mapping[Node, Sequence[_Dim]], single: Mapping[str, Node], kept: Kept) -> int:
    """The multiply-accumulates of a node with some units of its groups left."""

    def value(of: Node) -> Any:
        if not isinstance(of.meta["val"], torch.Tensor):
            return single[of.name].meta["val"]
        return torch.empty([_length(d, kept) for d in dims[of]], device="meta")

    return macs(node, value)


def _touched(dims: Sequence[_Dim]) -> tuple[int, ...]:
    return tuple(sorted({index for _, lengths in dims for index in lengths}))


class _Sums:
    """Tables of what choices add, by the groups that they depend on."""

    def __init__(self, sizes: Sequence[int], groups: Sequence[Group]) -> None:
        self.sizes, self.groups = sizes, groups
        self.tables: dict[tuple[int, ...], npt.NDArray[np.float64]] = {}

    def add(self, touched: Sequence[int], count: _Lengths) -> None:
        """Add one layer's cost over that of nothing cut."""
        free = tuple(i for i in touched if self.sizes[i] > 1)
        whole = count({})
        single = {i: np.array([count({i: c}) - whole for c in range(self.sizes[i])], dtype=np.float64) for i in free}
        last = {i: self.sizes[i] - 1 for i in free}
        pairs = [
            (i, j)
            for i, j in itertools.combinations(free, 2)
            if count({i: last[i], j: last[j]}) - whole != single[i][-1] + single[j][-1]
        ]
        both = {(i, j): self._pair(i, j, count, whole, single) for i, j in pairs}
        expected = whole + sum(s[-1] for s in single.values()) + sum(b[-1, -1] for b in both.values())
        if count(last) == expected:
            for place, table in (*(((i,), s) for i, s in single.items()), *both.items()):
                self._put(place, table)
        else:
            self._put(free, self._all(free, count, whole))

    def _pair(
        self, i: int, j: int, count: _Lengths, whole: int, single: Mapping[int, npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        """What two choices add together beyond what each adds alone."""
        table = np.array([[count({i: a, j: b}) - whole for b in range(self.sizes[j])] for a in range(self.sizes[i])])
        return np.asarray(table - single[i][:, None] - single[j][None, :], dtype=np.float64)

    def _all(self, free: tuple[int, ...], count: _Lengths, whole: int) -> npt.NDArray[np.float64]:
        sizes = [self.sizes[i] for i in free]
        if math.prod(sizes) > _COMBINATIONS:
            names = ", ".join(self.groups[i].name for i in free)
            got = f"a layer whose cost is a product of {len(free)} widths"
            raise InputError("Prune: allocate", where=names, got=got, do="Raise multiple, or use allocate='global'.")
        places = itertools.product(*map(range, sizes))
        return np.array([count(dict(zip(free, p, strict=True))) - whole for p in places], dtype=np.float64).reshape(
            sizes
        )

    def _put(self, place: tuple[int, ...], table: npt.NDArray[np.float64]) -> None:
        self.tables[place] = self.tables[place] + table if place in self.tables else table

    def factors(self, cost: str) -> list[Factor]:
        """The tables as factors of an allocation."""
        return [
            Factor(tuple(self.groups[i].name for i in place), {cost: table})
            for place, table in self.tables.items()
            if table.any()
        ]
