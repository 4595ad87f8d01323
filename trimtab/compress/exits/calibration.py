"""Calibration: confidences that are as often right as they say."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_BINS = 15
_LEAST, _MOST = 0.05, 20.0


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 that minimises the mean of -log softmax(logits / T)[label], within 0.05 to 20.

    In b = 1 / T that is convex: its slope, mean(sum_c p_c z_c - z_label), is brought to 0 by halving.

    Args:
        logits: [N, classes].
        labels: int64 [N].

    Source: Guo et al. (2017), On Calibration of Modern Neural Networks, section 4.2.
    """
    z = logits.double()
    own = z.gather(1, labels[:, None])[:, 0].mean()

    def slope(b: float) -> float:
        return float((torch.softmax(b * z, 1) * z).sum(1).mean() - own)

    low, high = math.log(1 / _MOST), math.log(1 / _LEAST)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def calibration_error(logits: Tensor, labels: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error: sum over bins of |B| / N |accuracy(B) - mean confidence(B)|.

    Args:
        logits: [N, classes].
        labels: int64 [N].
        bins: of equal width over (0, 1], by the largest probability.

    Source: Guo et al. (2017), equation 3; Naeini, Cooper & Hauskrecht (2015).
    """
    likely, answer = torch.softmax(logits.double(), 1).max(1)
    right = (answer == labels).double()
    index = (likely * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right - likely)
    return float(gaps.abs().sum() / len(likely))


def nll(logits: Tensor, labels: Tensor) -> float:
    """The mean of -log softmax(logits)[label]."""
    return float(functional.cross_entropy(logits.double(), labels))
