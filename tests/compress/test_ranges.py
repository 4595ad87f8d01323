"""Ranges: laws of quantisation, and values worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.compress.quantise.ranges import (
    NARROWEST,
    Histogram,
    activation_range,
    affine,
    floored,
    range_error,
    weight_error,
    weight_scales,
)

edges = st.floats(-100, 100, allow_nan=False).filter(lambda v: abs(v) > 1e-3)


def histogram(x: torch.Tensor, bins: int = 2048) -> Histogram:
    low, high = float(x.min()), float(x.max())
    return Histogram(low, high, torch.histc(x.float(), bins, low, high).double())


def test_affine_by_hand() -> None:
    how = affine(-1.0, 1.55, 8)
    assert how.scale == pytest.approx(0.01, rel=1e-6)
    assert (how.zero_point, how.low, how.high) == (100, 0, 255)
    assert how.quantise(torch.tensor([-1.0, 0.0, 1.55, 9.0])).tolist() == [0, 100, 255, 255]
    assert affine(0.0, 0.0, 8).scale == 1.0


@given(edges, edges, st.integers(0, 10_000))
def test_values_in_range_come_back_within_half_a_step(a: float, b: float, seed: int) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    how = affine(low, high, 8)
    x = torch.rand(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (high - low) + low
    # the zero point is rounded, so the range of levels may end up to half a step early on one side
    least, most = (how.low - how.zero_point) * how.scale, (how.high - how.zero_point) * how.scale
    x = x.clamp(least, most)
    assert float((how.dequantise(how.quantise(x)) - x).abs().max()) <= how.scale / 2 * (1 + 1e-9)


@given(edges, edges)
def test_zero_is_exact(a: float, b: float) -> None:
    how = affine(min(a, b), max(a, b), 8)
    assert float(how.dequantise(how.quantise(torch.zeros(1)))) == 0.0


@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_least_squares_is_never_worse_than_min_max(seed: int, power: float) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(seed))
    h = histogram(x.abs().pow(power) * x.sign())
    wide, best = activation_range(h, "minmax", 8), activation_range(h, "mse", 8)
    assert range_error(h, *best, 8) <= range_error(h, *wide, 8)


def test_least_squares_clips_outliers_and_min_max_does_not() -> None:
    x = torch.cat([torch.linspace(0, 1, 100_000), torch.tensor([100.0])])
    h = histogram(x, 20_480)
    assert activation_range(h, "minmax", 8) == (0.0, 100.0)
    # one outlier of 1e5 values: (100 - c)^2 / 1e5 + (c / 255)^2 / 12 is least at c = 88.6; the grid is 2.5 wide
    assert activation_range(h, "mse", 8)[1] == pytest.approx(88.6, abs=4)
    assert activation_range(h, "percentile", 8)[1] == pytest.approx(1.0, abs=0.01)


def test_percentile_keeps_zero_and_clips_both_sides() -> None:
    x = torch.linspace(-1, 1, 200_001)
    low, high = activation_range(histogram(x), "percentile", 8)
    assert low == pytest.approx(-1, abs=2e-3)
    assert high == pytest.approx(1, abs=2e-3)
    assert activation_range(histogram(x + 5), "percentile", 8)[0] == 0.0


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_weights_by_channel(seed: int) -> None:
    w = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-1, 1, 6).reshape(
        6, 1, 1, 1
    )
    full = weight_scales(w, 8, 0, "minmax")
    assert torch.allclose(full, w.abs().amax((1, 2, 3)) / 127)
    rounded = torch.round(w / full.reshape(6, 1, 1, 1)) * full.reshape(6, 1, 1, 1)
    assert bool(((rounded - w).abs() <= full.reshape(6, 1, 1, 1) * 0.5001).all())
    best = weight_scales(w, 8, 0, "mse")
    flat = w.flatten(1)
    assert bool((weight_error(flat, best, 127) <= weight_error(flat, full, 127)).all())
    assert weight_scales(w, 8, None, "minmax").tolist() == pytest.approx([float(w.abs().max()) / 127])


def test_weights_on_the_grid_are_exact() -> None:
    levels = torch.arange(-127.0, 128.0).reshape(1, -1).repeat(3, 1)
    w = levels * torch.tensor([[0.5], [0.25], [2.0]])
    scale = weight_scales(w, 8, 0, "minmax")
    assert torch.equal(torch.round(w / scale[:, None]) * scale[:, None], w)


def test_a_dead_channel_gets_a_scale_that_a_bias_can_live_with() -> None:
    scale = floored(torch.tensor([0.0, 1e-12, 0.01]))
    assert scale.tolist() == pytest.approx([0.01 * NARROWEST, 0.01 * NARROWEST, 0.01])
