"""Transfer: latencies of all architectures on a new device from a few measured there, and tables of other devices.

A device is a short vector of coefficients: what one operation of each kind costs on it. The tables of other devices
say how such vectors are spread, which is the prior; the few measurements turn it into a posterior. All figures are in
one unit of time, whichever the tables have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import InputError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_INDEPENDENT = 0.1
"""Share of each coefficient's variance that the prior holds independent of the others: there are few devices."""
_LEAST = 1e-3
"""Smallest deviation of a coefficient and of the noise, as a share of a device's mean latency: keeps solves exact."""


@dataclass(frozen=True)
class Prior:
    """What the tables of other devices say of a device that nobody has measured.

    Args:
        basis: [architectures, coefficients]; a column of ones, the features standardised, then the latents.
        mean: [coefficients] of a device whose mean latency is 1.
        covariance: [coefficients, coefficients] over devices.
        noise: [devices]; what the basis leaves of each device's latencies, as a share of its mean latency.
    """

    basis: Floats
    mean: Floats
    covariance: Floats
    noise: Floats


@dataclass(frozen=True)
class Prediction:
    """Latencies predicted for one device, in the unit of the measurements.

    Args:
        latency: [architectures].
        deviation: [architectures]; standard deviation of one measurement about `latency`.
    """

    latency: Floats
    deviation: Floats


@dataclass(frozen=True)
class _Posterior:
    """Scale, coefficients and log evidence under one level of noise."""

    scale: float
    mean: Floats
    covariance: Floats
    noise: float
    evidence: float


def fit_prior(latencies: Any, features: Any, latents: int = 0) -> Prior:
    """The spread of devices, learned from the tables of those that were measured in full.

    Each device's latencies, divided by their mean, are regressed on the basis B by least squares::

        y_d / mean(y_d) = B w_d + e_d        mean = avg_d w_d        covariance = cov_d w_d        noise_d = rms(e_d)

    With few devices the covariance is shrunk a tenth of the way to its diagonal. Latents are columns of B that the
    features cannot express: the first left singular vectors of what the features leave of all devices.

    Args:
        latencies: [architectures, devices], above 0, at least two devices.
        features: [architectures, features]; cheap to compute, such as counts of each operation.
        latents: how many latents. Choose it by leaving training devices out; 0 where the features say enough.

    Raises:
        InputError: wrong shapes, a latency that is not a positive number, or more latents than devices.

    Source: empirical Bayes for a hierarchical linear model (Efron and Morris 1973; Gelman et al. 2013, section 15.1).
    """
    table, given = _matrix("latencies", latencies), _matrix("features", features)
    count, devices = table.shape
    if given.shape[0] != count:
        raise InputError("fit_prior: features", got=f"{given.shape[0]} rows", expected=f"{count}, one an architecture")
    if devices < 2:
        raise InputError("fit_prior: latencies", got=f"{devices} device", expected="at least 2, to know their spread")
    if table.min() <= 0:
        raise InputError("fit_prior: latencies", got=f"{table.min():g}", expected="above 0 everywhere")
    spread = given.std(axis=0)
    if not 0 <= latents <= devices:
        raise InputError("fit_prior: latents", got=latents, expected=f"0 to {devices}, the number of devices")
    relative = table / table.mean(axis=0)  # [architectures, devices]
    varies = spread > 1e-9 * np.abs(given).max(axis=0)
    basis = np.column_stack([np.ones(count), (given[:, varies] - given[:, varies].mean(axis=0)) / spread[varies]])
    if latents:
        left = relative - basis @ _least_squares(basis, relative)
        basis = np.column_stack([basis, np.linalg.svd(left, full_matrices=False)[0][:, :latents] * np.sqrt(count)])
    weights = _least_squares(basis, relative)  # [coefficients, devices]
    noise = np.sqrt(((relative - basis @ weights) ** 2).mean(axis=0))
    spread_of_weights = np.atleast_2d(np.cov(weights))
    own = np.diag(np.diag(spread_of_weights))
    covariance = (1 - _INDEPENDENT) * spread_of_weights + _INDEPENDENT * own + _LEAST**2 * np.eye(len(own))
    return Prior(basis, weights.mean(axis=1), covariance, np.maximum(noise, _LEAST))


def choose(prior: Prior, k: int, candidates: Any = None) -> Indices:
    """The k architectures to measure, chosen before anything is known of the new device.

    Greedy: each next one, with basis row b, lessens most the posterior variance summed over all architectures::

        gain(b) = b^T P M P b / (noise^2 + b^T P b)        P <- P - P b b^T P / (noise^2 + b^T P b)

    where P starts as the prior's covariance, M = B^T B / architectures, and noise is the median device's.
    No architecture is chosen twice.

    Args:
        k: how many, at least 1.
        candidates: [any] indices of the architectures that may be measured; all of them where not given.

    Raises:
        InputError: k is below 1, or an index is outside the table.

    Source: transductive experimental design (Yu, Bi and Tresp, ICML 2006, the sequential greedy search); where we
        differ: a covariance learned from devices in place of the identity.
    """
    given = np.arange(len(prior.basis)) if candidates is None else candidates
    allowed = np.unique(_indices("choose: candidates", given, prior))
    if not 1 <= k <= len(allowed):
        raise InputError("choose: k", got=k, expected=f"1 to {len(allowed)}, the number of candidates")
    rows, left = prior.basis[allowed], prior.covariance.copy()
    moment = prior.basis.T @ prior.basis / len(prior.basis)
    noise = float(np.median(prior.noise)) ** 2
    free, chosen = np.ones(len(allowed), dtype=bool), []
    for _ in range(k):
        spread = rows @ left  # [candidates, coefficients]
        variance = (spread * rows).sum(axis=1)
        gain = ((spread @ moment) * spread).sum(axis=1) / (noise + variance)
        best = int(np.where(free, gain, -np.inf).argmax())
        free[best] = False
        chosen.append(allowed[best])
        left -= np.outer(spread[best], spread[best]) / (noise + variance[best])
    return np.array(chosen, dtype=np.intp)


def predict(prior: Prior, measured: Any, latencies: Any) -> Prediction:
    """Latencies of all architectures on a device where a few were measured.

    For each level of noise that a training device had, the posterior and its evidence are exact; the prediction is
    their mean, weighted by evidence, and the deviation that of the mixture::

        y = s (B w + e)        w ~ N(mean, covariance)        e ~ N(0, noise_d^2)        s by maximum likelihood

    Args:
        measured: [n] indices of the architectures that were measured, n at least 1; one may be there twice.
        latencies: [n] measured, above 0.

    Raises:
        InputError: nothing was measured, lengths differ, or a latency is not a positive number.

    Source: Bishop 2006, eq. 3.49-3.51 (posterior) and 3.86 (evidence); where we differ: the scale, and the average
        over levels of noise.
    """
    index = _indices("predict: measured", measured, prior)
    times = np.asarray(latencies, dtype=np.float64)
    if times.shape != index.shape:
        raise InputError("predict: latencies", got=f"shape {times.shape}", expected=f"{index.shape}, as `measured`")
    wrong = np.flatnonzero(~(np.isfinite(times) & (times > 0)))
    if len(wrong):
        place = f"measurement {wrong[0]}"
        raise InputError("predict: latencies", where=place, got=times[wrong[0]], expected="a finite number above 0")
    found = [_posterior(prior, index, times, float(noise)) for noise in prior.noise]
    evidence = np.array([f.evidence for f in found])
    share = np.exp(evidence - evidence.max())
    share /= share.sum()
    scaled = np.array([f.scale * f.mean for f in found])  # [levels of noise, coefficients]
    mean = share @ scaled
    spread = ((scaled - mean).T * share) @ (scaled - mean)
    noise = 0.0
    for weight, f in zip(share, found, strict=True):
        spread += weight * f.scale**2 * f.covariance
        noise += weight * (f.scale * f.noise) ** 2
    variance = ((prior.basis @ spread) * prior.basis).sum(axis=1) + noise
    return Prediction(prior.basis @ mean, np.sqrt(variance))


def _posterior(prior: Prior, index: Indices, times: Floats, noise: float) -> _Posterior:
    """Under one level of noise: the likeliest scale, and the coefficients given it.

    With C = B cov B^T + noise^2 I, m = B mean and t = 1 / s, the log evidence (without constants)::

        n log t - log det C / 2 - (t y - m)^T C^-1 (t y - m) / 2

    is greatest where n / t = t y^T C^-1 y - y^T C^-1 m, a quadratic in t with one positive root.
    """
    rows, count = prior.basis[index], len(index)
    centre = rows @ prior.mean
    cross = rows @ prior.covariance  # [n, coefficients]
    joint = cross @ rows.T + noise**2 * np.eye(count)
    solved = np.linalg.solve(joint, np.column_stack([times, centre, cross]))
    squared, mixed = float(times @ solved[:, 0]), float(times @ solved[:, 1])
    inverse = (mixed + np.sqrt(mixed**2 + 4 * count * squared)) / (2 * squared)
    pull = inverse * solved[:, 0] - solved[:, 1]  # C^-1 (t y - m)
    misfit = float((inverse * times - centre) @ pull)
    evidence = count * np.log(inverse) - np.linalg.slogdet(joint)[1] / 2 - misfit / 2
    left = prior.covariance - cross.T @ solved[:, 2:]
    return _Posterior(1 / inverse, prior.mean + cross.T @ pull, left, noise, float(evidence))


def _least_squares(basis: Floats, targets: Floats) -> Floats:
    return np.asarray(np.linalg.lstsq(basis, targets, rcond=None)[0], dtype=np.float64)


def _matrix(name: str, given: Any) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"fit_prior: {name}", got=f"shape {array.shape}", expected="[architectures, columns]")
    if not np.isfinite(array).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        place = f"row {row}, column {column}"
        raise InputError(f"fit_prior: {name}", where=place, got=array[row, column], expected="a finite number")
    return array


def _indices(name: str, given: Sequence[int] | Indices, prior: Prior) -> Indices:
    array, count = np.asarray(given), len(prior.basis)
    if array.ndim != 1 or len(array) < 1:
        raise InputError(name, got=f"shape {array.shape}", expected="a list of at least one index")
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() >= count:
        raise InputError(name, got=f"{array.tolist()[:10]}", expected=f"whole numbers from 0 to {count - 1}")
    return array.astype(np.intp)
