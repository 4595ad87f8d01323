"""Learned: where the training of scales starts (LSQ)."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.compress.quantise.insert import WeightRange, rows_of
from trimtab.compress.quantise.ranges import Affine, Histogram, affine, affine_error, floored, weight_error


def learned_start(weight: Tensor, how: WeightRange) -> WeightRange:
    """A weight's scales to train from: 2 mean abs(w) / sqrt(high) where that has less squared error, else as they are.

    Args:
        weight: the parameter.
        how: its calibrated range.

    Source: Esser et al. (2020), Learned Step Size Quantization, section 2.1. There it is the only start; at 8 bits
    it clips a third of the weights, and the calibrated range is the better one.
    """
    rows = rows_of(weight.detach(), how)  # [scales, values]
    start = floored(2 * rows.abs().mean(1) / how.high**0.5)
    better = weight_error(rows, start, how.high) < weight_error(rows, how.scale, how.high)
    return WeightRange(torch.where(better, start, how.scale), how.axis, how.low, how.high, how.group)


def learned_tensor(histogram: Histogram, how: Affine, bits: int) -> Affine:
    """An activation's scale to train from, chosen in the same way; its zero point keeps its share of the levels.

    Args:
        histogram: of the values.
        how: as calibrated.
        bits: of the levels.

    Source: Esser et al. (2020), section 2.1.
    """
    mean = float((histogram.centres().abs() * histogram.counts).sum() / histogram.counts.sum())
    most = max(how.high - how.zero_point, how.zero_point)
    step = 2 * mean / most**0.5
    if step <= 0:
        return how
    start = affine(-how.zero_point * step, (how.high - how.zero_point) * step, bits)
    return start if affine_error(histogram, start) < affine_error(histogram, how) else how
