"""Ranks by variational Bayes: what was planted under noise is found, and the formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trimtab.compress.factorise.vbmf import _threshold, vbmf_rank


@pytest.mark.parametrize(("rows", "columns", "rank"), [(60, 200, 5), (200, 60, 12), (100, 100, 1), (64, 576, 20)])
def test_a_planted_rank_is_found_under_noise(rows: int, columns: int, rank: int) -> None:
    source = np.random.default_rng(rank)
    signal = source.standard_normal((rows, rank)) @ source.standard_normal((rank, columns))
    noisy = signal + 0.5 * source.standard_normal((rows, columns))
    assert vbmf_rank(np.linalg.svd(noisy, compute_uv=False), rows, columns) == rank


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_has_rank_0(seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal((80, 300))
    assert vbmf_rank(np.linalg.svd(noise, compute_uv=False), 80, 300) == 0


def test_the_rank_does_not_depend_on_the_scale() -> None:
    source = np.random.default_rng(3)
    matrix = source.standard_normal((50, 4)) @ source.standard_normal((4, 90)) + source.standard_normal((50, 90))
    values = np.linalg.svd(matrix, compute_uv=False)
    assert {vbmf_rank(scale * values, 50, 90) for scale in (1e-6, 1.0, 1e6)} == {4}


def test_an_exact_low_rank_and_zeros() -> None:
    source = np.random.default_rng(4)
    exact = source.standard_normal((30, 3)) @ source.standard_normal((3, 40))
    assert vbmf_rank(np.linalg.svd(exact, compute_uv=False), 30, 40) == 3
    assert vbmf_rank(np.zeros(30), 30, 40) == 0


def test_the_threshold_is_that_of_the_paper() -> None:
    # alpha = 1: phi(t) = 0 at t = 2.5129, and the threshold is (1 + t) (1 + 1 / t)
    assert _threshold(1.0) == pytest.approx(3.5129 * (1 + 1 / 2.5129), rel=1e-4)
    # for other shapes the paper's approximation t = 2.5129 sqrt(alpha) is near the root
    for alpha in (0.1, 0.5):
        t = 2.5129 * math.sqrt(alpha)
        assert _threshold(alpha) == pytest.approx((1 + t) * (1 + alpha / t), rel=0.02)
    # nothing below the edge of the noise's own spectrum, (1 + sqrt(alpha))^2, is kept
    assert all(_threshold(alpha) > (1 + math.sqrt(alpha)) ** 2 for alpha in (0.01, 0.1, 0.5, 1.0))
