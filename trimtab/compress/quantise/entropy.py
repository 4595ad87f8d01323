"""Entropy: the range of an activation that loses the least information."""

from __future__ import annotations

import torch
from torch import Tensor

_STRIDE = 8
"""Bins between two ranges that are tried."""
_SMOOTH = 1e-4
"""What an empty bin counts for, taken from the others."""


def least_divergence(counts: Tensor, low: float, high: float, bits: int) -> tuple[float, float]:
    """The range whose levels tell the least wrong about the distribution of the values.

        KL(P || Q) = sum P log(P / Q)

    P are the values, those outside the range counted in its end bins; Q what is known of the values inside
    from their levels: each level's count, spread over its bins that are not empty. Ranges from 2^bits bins
    up to all are tried; both ends move towards 0 in proportion.

    Args:
        counts: in equal bins over [low, high].
        low: the least value.
        high: the greatest value.
        bits: of the levels.

    Returns: [low, high], holding 0.

    Source: Migacz (2017), 8-bit Inference with TensorRT, GTC, slides 22 to 27 and 38; empty bins smoothed
    as in MXNet's and ONNX Runtime's code. Ours may be asymmetric, and tries every eighth width.
    """
    n, levels = len(counts), 2**bits
    edges = torch.linspace(low, high, n + 1, dtype=torch.float64)
    centres, counts = (edges[:-1] + edges[1:]) / 2, counts.double()
    least, most = min(low, 0.0), max(high, 0.0)
    best, found = (least, most), float("inf")
    for width in [*range(levels, n, _STRIDE), n]:
        ends = (least * width / n, most * width / n)
        value = divergence(counts, centres, ends, levels)
        if value < found:
            best, found = ends, value
    return best


def divergence(counts: Tensor, centres: Tensor, ends: tuple[float, float], levels: int) -> float:
    """KL(P || Q) of one range; infinite where it holds no value.

    Args:
        counts: in equal bins, float64.
        centres: of the bins.
        ends: of the range.
        levels: their number.
    """
    low, high = ends
    inside = (centres >= low) & (centres <= high)
    held = counts[inside]
    if not bool((held > 0).any()):
        return float("inf")
    place = ((centres[inside] - low) / (high - low) * levels).long().clamp(0, levels - 1)
    p = held.clone()
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres > high].sum()
    there = (p > 0).double()
    total = torch.zeros(levels, dtype=torch.float64).index_add_(0, place, held)
    spread = torch.zeros(levels, dtype=torch.float64).index_add_(0, place, there)
    q = there * (total / spread.clamp_min(1))[place]
    p, q = _smoothed(p), _smoothed(q)
    p, q = p / p.sum(), q / q.sum()
    return float((p * (p / q).log()).sum())


def _smoothed(counts: Tensor) -> Tensor:
    empty = counts == 0
    taken = _SMOOTH * float(empty.sum()) / max(float((~empty).sum()), 1.0)
    return torch.where(empty, _SMOOTH, (counts - taken).clamp_min(_SMOOTH))
