"""Weights: the weights of the layers that a layer becomes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.compress.factorise.shapes import Ranks, divided
from trimtab.core.errors import RuntimeMissing

ITERATIONS = 50
"""Rounds of alternating least squares (CP) and of orthogonal iteration (Tucker), at most."""
_TOLERANCE = 1e-7


def decomposed(method: str, weight: Tensor, ranks: Ranks, seed: int = 0) -> list[Tensor]:
    """The weights of `shapes.parts`, in order, whose chain computes nearly what the weight does.

    - `svd`: W ~ (U S^1/2) (S^1/2 V^T) over [O, I k...] (Denton 2014, section 3.3; Zhang 2016, section 3.1);
    - `spatial`: W[o, i, y, x] ~ sum_r H[o, r, x] V[r, i, y], by SVD over [I k_y, k_x O] (Jaderberg 2014, scheme 2;
      by SVD as Tai 2016, theorem 1);
    - `tucker`: W ~ core x_1 A x_2 B over outputs and inputs, by orthogonal iteration (Kim 2016, eq. 3);
    - `cp`: W[o, i, y, x] ~ sum_r a[o, r] b[i, r] c[y, r] d[x, r], by alternating least squares (Lebedev 2015, eq. 2);
    - `tt`: W[i, y, x, o] ~ G1[i] G2[y] G3[x] G4[o], matrices of the ranks' sides, by a chain of SVDs (Garipov 2016,
      eq. 8, without splitting channels); of a linear layer over split inputs and outputs (Novikov 2015, eq. 4).

    All weights of a layer have one norm, so that they train and quantise alike.

    Args:
        method: of `METHODS`.
        weight: float64 [O, I, k...].
        ranks: as for `shapes.parts`.
        seed: of what starts at random: columns of CP beyond a side's.

    Raises:
        RuntimeMissing: tensorly is not installed, which `tucker`, `cp` and `tt` need.
    """
    if method == "svd":
        return balanced(_svd(weight, ranks[0]))
    if method == "spatial":
        return balanced(_spatial(weight, ranks[0]))
    if method == "tucker":
        return balanced(_tucker(weight, ranks))
    if method == "cp":
        return balanced(_cp(weight, ranks[0], seed))
    return balanced(_train(weight, ranks) if weight.ndim > 2 else _linear_train(weight, ranks))


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product with factors of one norm: the geometric mean of theirs."""
    norms = [float(f.norm()) for f in factors]
    if min(norms) <= 0:
        return list(factors)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [f * (mean / n) for f, n in zip(factors, norms, strict=True)]


def unfolded(method: str, weight: Tensor) -> list[Tensor]:
    """The matrices whose ranks a method chooses, of the sides that `shapes.matrices` says."""
    outputs, inputs = weight.shape[:2]
    if method == "svd":
        return [weight.flatten(1)]
    if method == "spatial":
        return [weight.permute(1, 2, 3, 0).reshape(inputs * weight.shape[2], -1)]
    if method == "tucker":
        return [weight.movedim(1, 0).reshape(inputs, -1), weight.reshape(outputs, -1)]
    tensor = _train_order(weight) if weight.ndim > 2 else _split(weight)
    sides = [math.prod(tensor.shape[:k]) for k in range(1, tensor.ndim)]
    return [tensor.reshape(side, -1) for side in sides]


def tensorly() -> Any:
    """The library, on NumPy whatever its backend is elsewhere.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        import tensorly as library
    except ImportError as error:
        raise RuntimeMissing(
            "Factorise: tensorly is not installed, and methods tucker, cp and tt need it",
            do="Install it: pip install 'trimtab[factorise]'.",
        ) from error
    return library


def _svd(weight: Tensor, rank: int) -> list[Tensor]:
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    first = (root[:, None] * v[:rank]).reshape(rank, *weight.shape[1:])
    return [first, _pointwise(u[:, :rank] * root, weight.ndim)]


def _spatial(weight: Tensor, rank: int) -> list[Tensor]:
    outputs, inputs, high, wide = weight.shape
    u, s, v = torch.linalg.svd(unfolded("spatial", weight)[0], full_matrices=False)
    root = s[:rank].sqrt()
    first = (u[:, :rank] * root).T.reshape(rank, inputs, high, 1)
    # [R, k_x O] -> [O, R, 1, k_x]
    last = (root[:, None] * v[:rank]).reshape(rank, wide, outputs).permute(2, 0, 1).unsqueeze(2)
    return [first, last]


def _tucker(weight: Tensor, ranks: Ranks) -> list[Tensor]:
    library = tensorly()
    from tensorly.decomposition import partial_tucker

    with library.backend_context("numpy", local_threadsafe=True):
        found, _ = partial_tucker(
            weight.numpy(), rank=[ranks[1], ranks[0]], modes=[0, 1], n_iter_max=ITERATIONS, tol=_TOLERANCE
        )
    core, (left, right) = found
    first, last = torch.from_numpy(right.copy()).T, torch.from_numpy(left.copy())
    return [_pointwise(first, weight.ndim), torch.from_numpy(core.copy()), _pointwise(last, weight.ndim)]


def _cp(weight: Tensor, rank: int, seed: int) -> list[Tensor]:
    library = tensorly()
    from tensorly.decomposition import parafac

    with library.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
        # it starts from the SVD of each side, and says so where a side has fewer vectors: the others start at random
        warnings.filterwarnings("ignore", message="Trying to compute SVD", category=UserWarning)
        scale, factors = parafac(
            weight.numpy(), rank, n_iter_max=ITERATIONS, tol=_TOLERANCE, normalize_factors=True, random_state=seed
        )
    # One share of each component's scale for every factor; [side, R] each.
    share = torch.from_numpy(scale.copy()) ** (1 / len(factors))
    left, right, *sides = (torch.from_numpy(f.copy()) * share for f in factors)
    chain = [_pointwise(right.T, weight.ndim)]
    for k, side in enumerate(sides):
        # a depthwise kernel along one side: [R, 1, 1.., k, ..1]
        chain.append(side.T.reshape(rank, 1, *(side.shape[0] if i == k else 1 for i in range(len(sides)))))
    return [*chain, _pointwise(left, weight.ndim)]


def _train_order(weight: Tensor) -> Tensor:
    """[O, I, k...] -> [I, k..., O]."""
    return weight.movedim(0, -1)


def _train(weight: Tensor, ranks: Ranks) -> list[Tensor]:
    first, *cores, last = _cores(_train_order(weight), ranks)
    chain = [_pointwise(first[0].T, weight.ndim)]
    for k, core in enumerate(cores):
        # [r, k, r'] -> [r', r, 1.., k, ..1]
        chain.append(core.permute(2, 0, 1).reshape(core.shape[2], core.shape[0], *_side(core, k, len(cores))))
    return [*chain, _pointwise(last[:, :, 0].T, weight.ndim)]


def _side(core: Tensor, k: int, count: int) -> list[int]:
    return [core.shape[1] if i == k else 1 for i in range(count)]


def _split(weight: Tensor) -> Tensor:
    """A linear layer's weight as the tensor [m_1 n_1, m_2 n_2, m_3 n_3]."""
    outs, ins = divided(weight.shape[0]), divided(weight.shape[1])
    split = weight.reshape(*outs, *ins).permute(0, 3, 1, 4, 2, 5)
    return split.reshape([m * n for m, n in zip(outs, ins, strict=True)])


def _linear_train(weight: Tensor, ranks: Ranks) -> list[Tensor]:
    """Weights of the linear layers that take in n_3, n_2 and n_1 in turn: [r_(k-1) m_k, n_k r_k]."""
    outs, ins = divided(weight.shape[0]), divided(weight.shape[1])
    cores = _cores(_split(weight), ranks)
    chain = []
    for core, m, n in zip(cores, outs, ins, strict=True):
        left, _, right = core.shape
        chain.append(core.reshape(left, m, n, right).reshape(left * m, n * right))
    return chain[::-1]


def _cores(tensor: Tensor, ranks: Ranks) -> list[Tensor]:
    """The tensor train of a tensor: [r_(k-1), n_k, r_k] each."""
    library = tensorly()
    from tensorly.decomposition import tensor_train

    with library.backend_context("numpy", local_threadsafe=True):
        cores = tensor_train(tensor.contiguous().numpy(), rank=[1, *ranks, 1])
    return [torch.from_numpy(core.copy()) for core in cores]


def _pointwise(matrix: Tensor, ndim: int) -> Tensor:
    """A matrix [O, I] as the weight of a layer whose weights have so many dimensions."""
    return matrix.reshape(*matrix.shape, *[1] * (ndim - 2))
