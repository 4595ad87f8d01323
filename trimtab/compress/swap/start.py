"""Start: the weights that an alternative begins with, the nearest to the layer that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.hardware.layer import Layer

_SWEEPS, _FEW = 40, 3
_LARGE = 1200
"""Unknowns of a least-squares problem above which few sweeps must do: one of 512 channels takes a minute."""
_ROWS, _CHUNK = 16_384, 2048
_RIDGE = 1e-4


def separable(weight: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """The best kernel of each input channel: of W[:, i] as a matrix [outputs, kernel], the first singular pair.

    min ||W[o, i] - P[o, i] D[i]||^2 for each i, which is the least error of the output for white inputs.
    """
    sides = weight.ndim - 2
    rows = weight.double().transpose(0, 1).flatten(2)  # [inputs, outputs, kernel]
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    depthwise = v[:, 0] * s[:, :1].sqrt()
    pointwise = u[:, :, 0] * s[:, :1].sqrt()  # [inputs, outputs]
    return depthwise.reshape(-1, 1, *weight.shape[2:]), pointwise.T.reshape(*weight.shape[:2], *[1] * sides)


def grouped(weight: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """The blocks of the kernel on its diagonal."""
    count = layers[0].groups
    o, i, *kernel = weight.shape
    blocks = weight.double().reshape(count, o // count, count, i // count, *kernel)
    return (torch.cat([blocks[g, :, g] for g in range(count)]),)


def bottleneck(weight: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """The kernel's Tucker-2 form by its leading channels (HOSVD): W ~ core x U_out x U_in.

    Source: Kim et al. (2016), Compression of Deep Convolutional Neural Networks, section 3.1.
    """
    few, sides = layers[1].inputs, weight.ndim - 2
    w = weight.double()
    out = torch.linalg.svd(w.flatten(1), full_matrices=False)[0][:, :few]  # [outputs, few]
    into = torch.linalg.svd(w.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :few]  # [inputs, few]
    core = torch.einsum("oi...,oa,ib->ab...", w, out, into)
    ones = [1] * sides
    return into.T.reshape(few, -1, *ones), core, out.reshape(-1, few, *ones)


def strips(weight: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """W[o, i, y, x] ~ sum_m down[o, m, y] across[m, i, x], by the singular vectors of [outputs y, inputs x].

    Source: Jaderberg et al. (2014), Speeding up Convolutional Neural Networks with Low Rank Expansions, section 2.1.
    """
    o, i, k, m = weight.shape
    matrix = weight.double().permute(0, 2, 1, 3).reshape(o * k, i * m)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    width = layers[0].outputs
    pad = max(width - len(s), 0)
    u, v, root = functional.pad(u, (0, pad))[:, :width], functional.pad(v, (0, 0, 0, pad))[:width], s.sqrt()
    root = functional.pad(root, (0, pad))[:width]
    down = (u * root).reshape(o, k, width).transpose(1, 2).unsqueeze(3)  # [o, width, k, 1]
    return (root[:, None] * v).reshape(width, i, 1, m), down


def stacked(weight: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    """3x3 kernels whose composition is nearest to the kernel, the first ones split off one by one."""
    left, found = weight.double(), []
    for layer in layers[:-1]:
        first, left = halves(left, layer.outputs)
        found.append(first)
    return (*found, left)


def halves(weight: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A [width, inputs, 3, 3] and B [outputs, width, k - 2, k - 2] with sum_m B[o, m] * A[m, i] nearest to W [o, i].

    Alternating least squares: the full convolution of kernels is linear in each of them.

    Args:
        weight: [outputs, inputs, k, k], float64.
        width: channels between.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(width, weight.shape[1], 3, 3, generator=generator, dtype=weight.dtype)
    side = weight.shape[2] - 2
    second = torch.zeros(len(weight), width, side, side, dtype=weight.dtype)
    for _ in range(_SWEEPS if 9 * width <= _LARGE else _FEW):
        second = _solved(first.transpose(0, 1), weight, side)
        first = _solved(second, weight.transpose(0, 1), 3).transpose(0, 1)
    return first, second


def _solved(known: Tensor, weight: Tensor, side: int) -> Tensor:
    """The kernels X [b, m, side, side] with sum_m known[a, m] * X[b, m] nearest to weight[b, a] for all a and b."""
    a, m, k, _ = known.shape
    whole = weight.shape[2]
    columns = torch.zeros(a, whole, whole, m, side, side, dtype=known.dtype)
    for y in range(side):
        for x in range(side):
            columns[:, y : y + k, x : x + k, :, y, x] = known.permute(0, 2, 3, 1)
    design = columns.reshape(a * whole * whole, m * side * side)
    target = weight.flatten(1).T  # [a y x, b]
    gram = design.T @ design
    ridge = 1e-12 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    found: Tensor = torch.linalg.solve(gram + ridge, design.T @ target)
    return found.T.reshape(-1, m, side, side)


OF_CONVOLUTION: Mapping[str, Callable[[Tensor, Sequence[Layer]], tuple[Tensor, ...]]] = {
    "separable": separable,
    "grouped": grouped,
    "bottleneck": bottleneck,
    "stacked": stacked,
    "strips": strips,
}
"""From a convolution's weight [outputs, inputs, *kernel] to those of the alternative's layers, in float64."""


def fitted(x: Tensor, y: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that is nearest to a map from x to y, by least squares over positions.

    min ||W patches(x) + b - y||^2 + ridge; at most 16,384 positions, drawn at random over all samples.

    Args:
        x: [n, channels, *sides].
        y: of the same shape.
        kernel: odd sides; zeros are padded.
    """
    n, channels = x.shape[:2]
    flat = x.reshape(n, channels, -1, x.shape[-1])  # [n, channels, rows, columns]: one row where there is one side
    sides = (1, *kernel) if len(kernel) == 1 else kernel
    wanted, size = y.reshape(n, channels, -1), channels * prod(sides) + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    right = torch.zeros(size, channels, dtype=torch.float64, device=x.device)
    # by chance: steps of equal length would meet the same columns again and again
    drawn = torch.randperm(n * wanted.shape[2], generator=torch.Generator().manual_seed(0))[:_ROWS].to(x.device)
    for some in torch.split(drawn, _CHUNK):
        sample, at = some // wanted.shape[2], some % wanted.shape[2]
        rows = functional.pad(_patches(flat, sample, at, sides).double(), (0, 1), value=1.0)
        gram += rows.T @ rows
        right += rows.T @ wanted[sample, :, at].double()
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=x.device)
    found = torch.linalg.solve(gram + ridge, right)  # [channels k k + 1, channels]
    return found[:-1].T.reshape(channels, channels, *kernel), found[-1]


def _patches(x: Tensor, sample: Tensor, at: Tensor, sides: tuple[int, ...]) -> Tensor:
    """What a kernel sees at some positions, [m, channels k k]: those of `unfold`, without making all of them.

    Args:
        x: [n, channels, rows, columns].
        sample: of each position, [m].
        at: rows times columns and columns of each, [m].
        sides: of the kernel.
    """
    high, wide = sides
    padded = functional.pad(x, (wide // 2, wide // 2, high // 2, high // 2)).permute(0, 2, 3, 1)
    down = (at // x.shape[3])[:, None] + torch.arange(high, device=x.device)  # [m, high]
    across = (at % x.shape[3])[:, None] + torch.arange(wide, device=x.device)
    found = padded[sample[:, None, None], down[:, :, None], across[:, None, :]]  # [m, high, wide, channels]
    return found.permute(0, 3, 1, 2).flatten(1)


def dirac(channels: int, kernel: tuple[int, ...]) -> Tensor:
    """The kernel that gives its input."""
    weight = torch.zeros(channels, channels, *kernel, dtype=torch.float64)
    every = torch.arange(channels)
    weight.flatten(2)[every, every, prod(kernel) // 2] = 1.0  # of odd sides the one in the middle
    return weight


def units(first: Tensor, second: Tensor, count: int) -> Tensor:
    """The hidden units of a feed-forward part that are kept: those of the largest ||W1[j]|| ||W2[:, j]||, in order."""
    score = first.double().norm(dim=1) * second.double().norm(dim=0)
    return torch.sort(score, descending=True, stable=True).indices[:count].sort().values
