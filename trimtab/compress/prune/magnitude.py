"""Magnitude: scores that weights alone give, without data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.compress.prune.units import per_unit, rows_of
from trimtab.graph.coupling import Member


def weight_score(tensors: Mapping[str, Tensor], member: Member, score: str) -> Tensor:
    """What one weight says of each unit, float64 [size].

    Args:
        tensors: parameters by name.
        member: the weight, and which of its elements go with each unit.
        score: `l1`, `batch_norm` (sum abs(w)), `squares` (sum w^2), `l2` (its root), or `fpgm`.
    """
    weight = tensors[member.parameter].detach()
    if score == "fpgm":
        return distances(rows_of(weight, member))
    if score in ("squares", "l2"):
        squares = per_unit(weight.double().square(), member)
        return squares if score == "squares" else squares.sqrt()
    return per_unit(weight.double().abs(), member)


def distances(rows: Tensor) -> Tensor:
    """sum over j of ||w_i - w_j|| for each row i: least for what is nearest to the geometric median.

    Args:
        rows: [units, elements].

    Source: He et al. (2019), Filter Pruning via Geometric Median, eq. 4 and 9.
    """
    return torch.cdist(rows, rows).sum(1)


def lamp(squares: Tensor) -> Tensor:
    """q_i / (sum of q_j over all j with q_j >= q_i): 1 for the largest, which a threshold below 1 never cuts.

    Args:
        squares: q, [units], 0 or more.

    Source: Lee et al. (2021), Layer-Adaptive Sparsity for the Magnitude-Based Pruning, eq. 3. Of equal ones the later
    counts as the smaller, so that the first stays.
    """
    order = torch.sort(squares, descending=True, stable=True).indices
    ordered = squares[order]
    found = torch.empty_like(squares)
    found[order] = ordered / ordered.cumsum(0).clamp_min(1e-30)
    return found
