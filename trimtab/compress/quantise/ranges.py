"""Ranges: from the values of a tensor to the scale and zero point that quantise it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trimtab.compress.quantise.entropy import least_divergence

Calibration = Literal["minmax", "average", "percentile", "entropy", "mse"]
BINS = 2048
"""Bins of a histogram of activations: eight for each step of 8 bits."""
SMALLEST = 2.0**-24
"""A scale is at least this: smaller ones underflow in a runtime's products of scales."""
NARROWEST = 2.0**-12
"""A channel's scale is at least this share of the layer's largest. Runtimes hold a bias in 32 bits at the scale of
input times weight; a dead channel (weights near 0, but a bias) would overflow it."""
_GRID = 40
_SHARE = 0.9999
"""Of all values, the share that percentile calibration keeps in range."""


@dataclass(frozen=True)
class Affine:
    """How one tensor is quantised.

    q = clamp(round(x / scale) + zero_point, low, high), x ~ (q - zero_point) scale (eq. 11).

    Args:
        scale: the step between two levels, above 0.
        zero_point: the level that stands for 0.0.
        low: the lowest level.
        high: the highest level.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    def quantise(self, x: Tensor) -> Tensor:
        """The level of each value, as floating-point numbers."""
        return (torch.round(x / self.scale) + self.zero_point).clamp(self.low, self.high)

    def dequantise(self, q: Tensor) -> Tensor:
        """The value of each level."""
        return (q - self.zero_point) * self.scale


def affine(low: float, high: float, bits: int) -> Affine:
    """Unsigned asymmetric quantisation of [low, high], widened to hold 0 so that padding is exact.

    Source: Jacob et al. (2018), Quantization and Training of Neural Networks, sections 2.1 and 3.
    """
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    if high == low:
        return Affine(1.0, 0, 0, top)
    scale = max((high - low) / top, SMALLEST)
    # a float32 scale is what every runtime holds; rounding it here keeps all of them equal
    scale = float(torch.tensor(scale, dtype=torch.float32))
    return Affine(scale, min(max(round(-low / scale), 0), top), 0, top)


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's values in equal bins over [low, high].

    Args:
        low: the least value.
        high: the greatest value.
        counts: by bin.
        average: the moving averages of the batches' least and greatest values; None where nothing kept them.
    """

    low: float
    high: float
    counts: Tensor
    average: tuple[float, float] | None = None

    def centres(self) -> Tensor:
        """The middle of each bin, float64."""
        n = len(self.counts)
        return self.low + (self.high - self.low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def activation_range(histogram: Histogram, method: Calibration, bits: int) -> tuple[float, float]:
    """The range [low, high] of an activation tensor to quantise; what is outside is clipped.

    Args:
        histogram: of the tensor on the calibration data.
        method: `minmax` keeps everything; `average` what lies between the averages of the batches' ends;
            `percentile` the central 99.99 % of the values; `entropy` the range that loses the least information;
            `mse` searches the range with the least mean squared error, and never one that is worse than min-max.
        bits: of the integers.

    Source: Krishnamoorthi (2018), section 3.2, for min-max and percentile; Jacob et al. (2018), section 3.1, for
    averages; Migacz (2017) for entropy, as `least_divergence` says; Banner et al. (2019), Post-training 4-bit
    quantization, section 3, for choosing the clip by mean squared error (we search, they derive).
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "minmax" or high == low:
        return low, high
    if method == "average":
        first, last = (low, high) if histogram.average is None else histogram.average
        return min(first, 0.0), max(last, 0.0)
    if method == "entropy":
        return least_divergence(histogram.counts, histogram.low, histogram.high, bits)
    if method == "percentile":
        total = histogram.counts.sum()
        below = histogram.counts.cumsum(0) / total
        width = (histogram.high - histogram.low) / len(histogram.counts)
        # a range without negative values keeps its 0; only the far side is clipped then
        tail = (1 - _SHARE) / (2 if low < 0 < high else 1)
        first = int((below < tail).sum()) if low < 0 else 0
        last = int((below < 1 - tail).sum()) if high > 0 else len(below) - 1
        left = histogram.low + first * width
        right = histogram.low + min(last + 1, len(below)) * width
        return min(max(left, low), 0.0), max(min(right, high), 0.0)
    return _least_error(histogram, low, high, bits)


def _least_error(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    shares = torch.linspace(1.0, 1 / _GRID, _GRID).tolist()
    best, least = (low, high), range_error(histogram, low, high, bits)
    pairs = [(low * a, high * b) for a in (shares if low < 0 else [1.0]) for b in (shares if high > 0 else [1.0])]
    for candidate in pairs:
        error = range_error(histogram, *candidate, bits)
        if error < least:
            best, least = candidate, error
    return best


def range_error(histogram: Histogram, low: float, high: float, bits: int) -> float:
    """Mean squared error of quantising what the histogram counted with the range [low, high]."""
    return affine_error(histogram, affine(low, high, bits))


def affine_error(histogram: Histogram, how: Affine) -> float:
    """Mean squared error of quantising what the histogram counted."""
    x = histogram.centres()
    squares = (how.dequantise(how.quantise(x)) - x).square() * histogram.counts
    return float(squares.sum() / histogram.counts.sum())


def weight_scales(weight: Tensor, top: int, axis: int | None, method: Calibration) -> Tensor:
    """Symmetric scales of a weight: [channels], or [1] where `axis` is None.

    Levels are -top to top. Min-max gives max abs(w) / highest level,
    as does `average`; the others clip it where that lowers the squared error of the channel (percentiles
    and divergences of few values say little).

    Args:
        weight: the parameter.
        top: the highest level: 127 of 8 bits.
        axis: the output-channel dimension; None for one scale for all.
        method: as for `activation_range`.

    Source: Krishnamoorthi (2018), Quantizing deep convolutional networks, section 2.3.
    """
    flat = weight.detach().float()
    flat = flat.reshape(1, -1) if axis is None else flat.movedim(axis, 0).flatten(1)  # [C, rest]
    full = floored(flat.abs().amax(1) / top)
    if method in ("minmax", "average"):
        return full
    best, least = full, weight_error(flat, full, top)
    for share in torch.linspace(1.0, 1 / _GRID, _GRID).tolist()[1:]:
        scale = floored(full * share)
        error = weight_error(flat, scale, top)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def floored(scale: Tensor) -> Tensor:
    """Scales [C], none smaller than `NARROWEST` of the largest or than `SMALLEST`."""
    return torch.maximum(scale, scale.amax() * NARROWEST).clamp_min(SMALLEST)


def weight_error(flat: Tensor, scale: Tensor, top: int) -> Tensor:
    """Sum of squared errors of each row of [C, n] under its scale [C]."""
    levels = torch.round(flat / scale[:, None]).clamp(-top, top)
    error: Tensor = (levels * scale[:, None] - flat).square().sum(1)
    return error
