"""Ranges: laws of quantisation, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.compress.quantise.calibrate import histograms
from trimtab.compress.quantise.entropy import divergence, least_divergence
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
from trimtab.graph.capture import capture

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


@given(edges, edges, st.integers(2, 8), st.integers(0, 10_000))
def test_values_in_range_come_back_within_half_a_step(a: float, b: float, bits: int, seed: int) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    how = affine(low, high, bits)
    assert (how.low, how.high) == (0, 2**bits - 1)
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
    full = weight_scales(w, 127, 0, "minmax")
    assert torch.allclose(full, w.abs().amax((1, 2, 3)) / 127)
    rounded = torch.round(w / full.reshape(6, 1, 1, 1)) * full.reshape(6, 1, 1, 1)
    assert bool(((rounded - w).abs() <= full.reshape(6, 1, 1, 1) * 0.5001).all())
    best = weight_scales(w, 127, 0, "mse")
    flat = w.flatten(1)
    assert bool((weight_error(flat, best, 127) <= weight_error(flat, full, 127)).all())
    assert weight_scales(w, 127, None, "minmax").tolist() == pytest.approx([float(w.abs().max()) / 127])


def test_weights_on_the_grid_are_exact() -> None:
    levels = torch.arange(-127.0, 128.0).reshape(1, -1).repeat(3, 1)
    w = levels * torch.tensor([[0.5], [0.25], [2.0]])
    scale = weight_scales(w, 127, 0, "minmax")
    assert torch.equal(torch.round(w / scale[:, None]) * scale[:, None], w)


def test_a_dead_channel_gets_a_scale_that_a_bias_can_live_with() -> None:
    scale = floored(torch.tensor([0.0, 1e-12, 0.01]))
    assert scale.tolist() == pytest.approx([0.01 * NARROWEST, 0.01 * NARROWEST, 0.01])


def test_average_by_hand() -> None:
    graph = capture(nn.ReLU(), torch.randn(2, 4))
    batches = [
        torch.tensor([[-1.0, 0.5, 1.0, 2.0]]),
        torch.tensor([[-3.0, 0.0, 1.0, 4.0]]),
        torch.tensor([[0.0, 9.0]] * 2),
    ]
    x = next(iter(graph.net.graph.nodes)).name
    found = histograms(graph, {x: x}, [(batch,) for batch in batches])[x]
    assert (found.low, found.high) == (-3.0, 9.0)
    # the mean of the ends, as long as there are no more than 100 batches
    assert found.average == pytest.approx(((-1 - 3 + 0) / 3, (2 + 4 + 9) / 3))
    assert activation_range(found, "average", 8) == pytest.approx((-4 / 3, 5.0))


def test_average_forgets_slowly() -> None:
    graph = capture(nn.ReLU(), torch.randn(2, 4))
    x = next(iter(graph.net.graph.nodes)).name
    batches = [(torch.tensor([[0.0, 1.0]]),)] * 150 + [(torch.tensor([[0.0, 2.0]]),)]
    found = histograms(graph, {x: x}, batches)[x]
    assert found.average == pytest.approx((0.0, 1.01))


def test_tensors_of_one_range_are_averaged_together() -> None:
    class Both(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.relu(), -x.relu()], 1)

    graph = capture(Both(), torch.randn(2, 4))
    names = [node.name for node in graph.nodes() if node.name != "cat"]
    found = histograms(
        graph, dict.fromkeys(names, names[0]), [(torch.tensor([[1.0, -2.0]]),), (torch.tensor([[3.0, 0.0]]),)]
    )
    assert found[names[0]].average == pytest.approx((-2.0, 2.0))


def test_divergence_by_hand() -> None:
    # two levels over four bins that hold 1, 3 | 2, 2: the first level's 4 are spread as 2, 2
    counts, centres = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 1.5, 2.5, 3.5])
    by_hand = (1 * math.log(1 / 2) + 3 * math.log(3 / 2)) / 8
    assert divergence(counts, centres, (0.0, 4.0), 2) == pytest.approx(by_hand)
    # without the last two bins their 4 count in the end bin of P, not in Q
    p, q = (1 / 8, 7 / 8), (1 / 4, 3 / 4)
    assert divergence(counts, centres, (0.0, 2.0), 2) == pytest.approx(
        sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    )
    assert divergence(torch.zeros(4), centres, (0.0, 4.0), 2) == float("inf")


@pytest.mark.parametrize(("power", "apart"), [(1.0, 0.1), (2.0, 0.25)])
def test_entropy_finds_about_the_range_of_onnxruntime(power: float, apart: float) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    x = x.sign() * x.abs() ** power
    most, bins = float(x.abs().max()), 2049
    counts = torch.histc(x, bins, -most, most)
    borders = np.linspace(-most, most, bins + 1)
    collector = calibrate.HistogramCollector(
        method="entropy", symmetric=True, num_bins=bins, num_quantized_bins=256, percentile=99.99, scenario="same"
    )
    histogram = (counts.numpy().astype(np.int64), borders, np.float64(-most), np.float64(most))
    theirs = collector.get_entropy_threshold(histogram, 256)
    low, high = least_divergence(counts, -most, most, 8)
    assert -low == high
    # their levels are of whole bins, with what is left over in the last one
    assert high == pytest.approx(float(theirs[1]), rel=apart)
    assert high < 0.97 * most


def test_entropy_clips_the_tail_and_keeps_what_is_dense() -> None:
    dense = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    found = activation_range(histogram(torch.cat([dense, torch.tensor([0.0, 4.0])])), "entropy", 8)
    assert found[0] == 0.0
    assert 0.95 < found[1] < 1.3
    # nothing is gained where everything is dense
    assert activation_range(histogram(dense), "entropy", 8)[1] == pytest.approx(1.0, abs=0.05)
