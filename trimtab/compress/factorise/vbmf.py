"""VBMF: the rank of a noisy matrix by empirical variational Bayes, in closed form."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from trimtab.run.runtime import Array

_GRID = 200
"""Values of the noise variance that the search for the best one starts from."""
_TINY = 1e-14
"""Of the largest squared singular value: what is below is rounding."""


def vbmf_rank(singular: Array, rows: int, columns: int) -> int:
    """The number of singular values that are no noise, by the global solution of empirical variational Bayes.

    V = B A^T + noise of variance s, with L <= M sides, alpha = L / M: a singular value g is kept where

        g^2 > s M (1 + t) (1 + alpha / t),    t the zero of phi(t) + phi(t / alpha), phi(z) = log(z + 1) / z - 1/2

    and s is the minimiser, within its bounds, of the free energy

        sum_h psi(g_h^2 / (M s)),    psi(x) = x - log x, and where x is above the threshold, also
        + log(tau + 1) + alpha log(tau / alpha + 1) - tau,
        tau(x) = (x - (1 + alpha) + sqrt((x - (1 + alpha))^2 - 4 alpha)) / 2

    (the free energy up to a factor and constants; log s stands in -log x).

    Args:
        singular: all min(rows, columns) singular values.
        rows: of the matrix.
        columns: of it.

    Source: Nakajima, Sugiyama, Babacan & Tomioka (2013), Global Analytic Solution of Fully-observed Variational
    Bayesian Matrix Factorization, JMLR 14; the threshold in this form, and the bounds of the noise, as Nakajima,
    Tomioka, Sugiyama & Babacan (2012), Perfect Dimensionality Recovery by Variational Bayesian PCA.
    """
    least, most = min(rows, columns), max(rows, columns)
    squares = np.sort(np.asarray(singular, dtype=np.float64) ** 2)[::-1]
    if squares[0] <= 0:
        return 0
    squares = np.maximum(squares, _TINY * squares[0])
    alpha = least / most
    threshold = _threshold(alpha)
    noise = _noise(squares, least, most, alpha, threshold)
    return int(np.sum(squares > noise * most * threshold))


def _threshold(alpha: float) -> float:
    """(1 + t) (1 + alpha / t): what g^2 / (M s) must exceed."""

    def balance(t: float) -> float:
        return _phi(t) + _phi(t / alpha)

    t = brentq(balance, 1e-9, 10.0)
    return (1 + t) * (1 + alpha / t)


def _phi(z: float) -> float:
    return math.log1p(z) / z - 0.5


def _noise(squares: Array, least: int, most: int, alpha: float, threshold: float) -> float:
    """The variance of the noise: the minimiser of the free energy within its bounds."""
    kept = min(math.ceil(least / (1 + alpha)) - 1, least - 1)
    high = float(squares.sum()) / (least * most)
    low = max(float(squares[kept]) / (most * threshold), float(squares[kept:].mean()) / most)
    if not low < high:
        return high

    def energy(log: float) -> float:
        x = squares / (most * math.exp(log))
        value = x - np.log(x)
        large = x[x > threshold]
        rest = large - (1 + alpha)
        tau = (rest + np.sqrt(np.maximum(rest**2 - 4 * alpha, 0.0))) / 2
        return float(value.sum() + (np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau).sum())

    grid = np.linspace(math.log(low), math.log(high), _GRID)
    best = int(np.argmin([energy(g) for g in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = minimize_scalar(energy, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return math.exp(min((float(found.x), float(grid[best])), key=energy))
