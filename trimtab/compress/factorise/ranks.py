"""Ranks: from the energy to keep, by variational Bayes, or from a share of a layer's multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.compress.factorise.shapes import Ranks, consistent, limits, macs, matrices
from trimtab.compress.factorise.vbmf import vbmf_rank
from trimtab.compress.factorise.weights import unfolded
from trimtab.hardware.layer import Layer

SHARES = (0.75, 0.5, 0.35, 0.25)
"""Of a layer's multiply-adds, for the ranks to choose from."""


def spectra(method: str, weight: Tensor) -> list[Tensor]:
    """The singular values of each matrix that a method cuts, largest first.

    Args:
        method: not `cp`, which cuts none.
        weight: float64 [O, I, k...].
    """
    return [torch.linalg.svdvals(matrix) for matrix in unfolded(method, weight)]


def by_energy(spectra: Sequence[Tensor], energy: float) -> Ranks:
    """The least ranks that keep so much of a weight's squared norm.

    Each of n cuts may lose 1/n of what may be lost: the squared errors of a Tucker decomposition and of a tensor
    train are at most the sums of those of their cuts (De Lathauwer 2000, property 10; Oseledets 2011, theorem 2.2).

    Args:
        spectra: the singular values of each cut, largest first.
        energy: share of the sum of their squares, above 0 to 1.
    """
    lost = (1 - energy) / len(spectra)
    found = []
    for values in spectra:
        squares = values.square()
        # the energy that goes with all values from each one on, so that a small rest is not lost to rounding
        rest = squares.flip(0).cumsum(0).flip(0) / squares.sum().clamp_min(1e-300)
        found.append(max(int((rest > lost + 1e-12).sum()), 1))
    return tuple(found)


def by_bayes(method: str, shape: Layer, spectra: Sequence[Tensor]) -> Ranks:
    """The ranks that empirical variational Bayes finds (Kim 2016, section 3.2), at least 1 each."""
    sides = matrices(method, shape)
    return tuple(max(vbmf_rank(np.asarray(s), *side), 1) for s, side in zip(spectra, sides, strict=True))


def by_share(method: str, shape: Layer, share: float, multiple: int) -> Ranks | None:
    """The largest ranks, in one proportion to their limits, at which a layer has at most so many multiply-adds.

    Args:
        method: that suits the layer.
        shape: of the layer.
        share: of its multiply-adds, above 0 to 1.
        multiple: of the ranks above it.

    Returns: None where ranks of 1 have more.
    """
    tried = (consistent(method, shape, r) for r in _proportional(limits(method, shape), multiple))
    return next((r for r in tried if fits(method, shape, r, share)), None)


def fits(method: str, shape: Layer, ranks: Ranks, share: float = 1.0) -> bool:
    """Whether a layer at these ranks has at most so large a share of its multiply-adds; below all of them at 1."""
    return macs(method, shape, ranks) <= share * shape.macs and macs(method, shape, ranks) < shape.macs


def _proportional(most: Ranks, multiple: int) -> Iterator[Ranks]:
    """All ranks in one proportion to the largest, from the largest on."""
    for first in range(max(most), 0, -1):
        scaled = (n * first // max(most) for n in most)
        yield tuple(max(n // multiple * multiple if n > multiple else n, 1) for n in scaled)


def rounded(ranks: Ranks, most: Ranks, multiple: int) -> Ranks:
    """Ranks raised to the next multiple, which kernels are fast at, up to their limits."""
    return tuple(min(-(-r // multiple) * multiple, n) for r, n in zip(ranks, most, strict=True))


def choices(method: str, shape: Layer, multiple: int, shares: Sequence[float] = SHARES) -> tuple[Ranks, ...]:
    """The ranks to choose from, largest first."""
    found = (by_share(method, shape, share, multiple) for share in shares)
    return tuple(dict.fromkeys(r for r in found if r is not None))
