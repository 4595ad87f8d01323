"""Permute: channels in another order, so that N:M groups lose less. The network computes what it did."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from trimtab.compress.sparsify.pattern import Pattern, best_of_groups, rows_of
from trimtab.compress.sparsify.weights import Weight
from trimtab.core.context import Progress
from trimtab.graph.coupling import Group, groups
from trimtab.graph.model import Graph

_ROWS = 1024
"""Rows of weights that an order is looked for on."""
_SWEEPS = 8
"""Times that every pair of groups of channels is looked at, at most."""
_PAIRS = 4000
"""Pairs that are looked at in one sweep, at most."""
_ALIKE = 1e-3
"""Relative difference of outputs that sums in another order make, at most."""


def permuted(
    graph: Graph, found: Sequence[Weight], pattern: Pattern, fixed: Collection[str], seed: int, progress: Progress
) -> Graph:
    """The graph with the channels that N:M weights read in an order in which more of their magnitude stays.

    Two channels of unlike groups of M change places where that keeps more, over all weights that read them, until
    no pair does. Only channels that are one index in everything that reaches them move; what makes them moves too.

    Args:
        graph: evaluating; left as it was.
        found: the weights that will be N:M.
        pattern: N:M.
        fixed: names of layers whose channels stay in order.
        seed: of the order in which pairs are looked at.
        progress: shows a bar.

    Source: Pool & Yu (2021), Channel Permutations for N:M Sparsity, section 4 (greedy channel swaps).
    """
    result = graph.copy()
    axes = {w.name: w.axis for w in found}
    every = [g for g in groups(graph, fixed) if _movable(g, pattern, graph)]
    for i, group in enumerate(every):
        progress("permute", i, len(every))
        reads = [m for m in group.members if m.parameter in axes and m.dim == 1 - axes[m.parameter]]
        if not reads:
            continue
        tensors = result.tensors()
        columns = [_columns(tensors[m.parameter].detach(), axes[m.parameter], group) for m in reads]
        order = _order(torch.cat(columns), pattern, seed)
        if order is not None:
            _reorder(result, group, order)
    progress("permute", len(every), len(every))
    return result if _alike(graph, result) else graph.note("Sparsify: no other order of channels computes the same.")


def _movable(group: Group, pattern: Pattern, graph: Graph) -> bool:
    """Whether each unit is the same one index in everything that the group reaches, from 0 up, and nothing else is."""
    natural, tensors = tuple((i,) for i in range(group.size)), graph.tensors()
    alone = all(m.indices == natural and tensors[m.parameter].shape[m.dim] == group.size for m in group.members)
    return group.reason is None and alone and group.size % pattern.second == 0 and group.size > pattern.second


def _columns(weight: Tensor, axis: int, group: Group) -> Tensor:
    """abs(w) as [rows, channels of the group]: outputs and places of the kernel are rows."""
    return rows_of(weight.abs(), axis).transpose(1, 2).flatten(0, 1)


def _order(columns: Tensor, pattern: Pattern, seed: int) -> Tensor | None:
    """The order of channels, or None where none found keeps more on all rows."""
    generator = torch.Generator().manual_seed(seed)
    some = columns[torch.randperm(len(columns), generator=generator)[:_ROWS]]
    m, count = pattern.second, columns.shape[1] // pattern.second
    order = torch.arange(columns.shape[1])
    pairs = torch.combinations(torch.arange(count), 2)
    for _ in range(_SWEEPS):
        better = False
        for a, b in pairs[torch.randperm(len(pairs), generator=generator)[:_PAIRS]].tolist():
            at = torch.cat([torch.arange(a * m, a * m + m), torch.arange(b * m, b * m + m)])
            swap = _best_swap(some[:, order[at]], pattern)
            if swap is not None:
                places = at[[swap[0], m + swap[1]]]
                order[places] = order[places.flip(0)]
                better = True
        if not better:
            break
    return order if _kept(columns[:, order], pattern) > _kept(columns, pattern) else None


def _best_swap(columns: Tensor, pattern: Pattern) -> tuple[int, int] | None:
    """Which channel of the first M and which of the second to exchange; None where it is best as it is."""
    m = pattern.second
    ways = torch.arange(2 * m).repeat(m * m + 1, 1)  # [M M + 1, 2 M], the last as it is
    for k in range(m * m):
        i, j = k // m, m + k % m
        ways[k, i], ways[k, j] = j, i
    tried = columns[:, ways].reshape(-1, len(ways), 2, m)  # [rows, ways, 2, M]
    left = tried.topk(pattern.first, -1).values.sum((0, 2, 3))
    best = int(left.argmax())
    if best == m * m or float(left[best]) <= float(left[-1]) * (1 + 1e-6):
        return None
    return best // m, best % m


def _kept(columns: Tensor, pattern: Pattern) -> float:
    """The magnitude that N:M leaves, of columns that are inputs."""
    rows = columns[:, :, None]
    return float((rows * best_of_groups(rows, pattern)).double().sum())


@torch.no_grad()
def _reorder(graph: Graph, group: Group, order: Tensor) -> None:
    tensors = graph.tensors()
    for member in group.members:
        tensor = tensors[member.parameter]
        tensor.copy_(tensor.index_select(member.dim, order.to(tensor.device)))


@torch.no_grad()
def _alike(graph: Graph, other: Graph) -> bool:
    """Whether two graphs give the same, but for rounding, on random inputs."""
    inputs = graph.example(batch=4, seed=1)
    for a, b in zip(graph.net(*inputs), other.net(*inputs), strict=True):
        if a.is_floating_point() and float((a - b).abs().max()) > _ALIKE * max(float(a.abs().max()), 1e-6):
            return False
    return True
