"""K-means: few centres that many weights, or short rows of weights, lie near."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Start = Literal["linear", "density", "kmeans++"]
"""Where centres start: evenly spaced from the least to the greatest value, at even shares of the values, or drawn one
after the other with a chance that grows with the squared distance to those there are (Arthur & Vassilvitskii 2007)."""
STARTS: tuple[Start, ...] = ("linear", "density", "kmeans++")
_ROUNDS = 200
_CHUNK = 1 << 22
"""Distances that are held at a time."""


def centres_of(values: Tensor, count: int, start: Start, weights: Tensor, generator: torch.Generator) -> Tensor:
    """At most `count` centres c of single values, rising: sum_i h_i min_k (w_i - c_k)^2 at a local least.

    Lloyd's algorithm on the sorted values: borders lie midway between centres, and a centre is the weighted mean of
    the values between its borders.

    Args:
        values: w, [n], float.
        count: k.
        start: where the centres start.
        weights: h, [n], above 0: what an error in each value costs.
        generator: of what `kmeans++` draws.

    Source: Han et al. (2016), Deep Compression, section 3, equation 2; weighted as by Choi et al. (2017), Towards the
    Limit of Network Quantization, equation 4.
    """
    ordered, order = values.double().sort()
    h = weights.double()[order]
    centres = _start(ordered, count, start, h, generator)
    mass = torch.cat([h.new_zeros(1), h.cumsum(0)])
    moment = torch.cat([h.new_zeros(1), (h * ordered).cumsum(0)])
    for _ in range(_ROUNDS):
        borders = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat([borders.new_zeros(1), borders, borders.new_tensor([len(ordered)])])
        inside = mass[ends[1:]] - mass[ends[:-1]]
        moved = torch.where(inside > 0, (moment[ends[1:]] - moment[ends[:-1]]) / inside.clamp_min(1e-300), centres)
        if bool((inside <= 0).any()):
            moved[int((inside <= 0).int().argmax())] = _worst(ordered, h, moved[inside > 0])
        moved = moved.sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    found = torch.unique(centres.to(values.dtype))
    used: Tensor = found[torch.unique(nearest(values, found))]
    return used


def _worst(ordered: Tensor, h: Tensor, centres: Tensor) -> Tensor:
    """The value that is worst off with some centres: where one that nothing is near starts again."""
    return ordered[(h * (ordered - centres[nearest(ordered, centres)]).square()).argmax()]


def nearest(values: Tensor, centres: Tensor) -> Tensor:
    """For each value [n] the place of the nearest of rising centres [k], int64."""
    return torch.searchsorted((centres[1:] + centres[:-1]).double() / 2, values.double())


def _start(ordered: Tensor, count: int, start: Start, h: Tensor, generator: torch.Generator) -> Tensor:
    if start == "linear":
        return torch.linspace(float(ordered[0]), float(ordered[-1]), count, dtype=ordered.dtype)
    if start == "density":
        shares = (torch.arange(count, dtype=ordered.dtype) + 0.5) / count
        return ordered[(shares * len(ordered)).long().clamp_max(len(ordered) - 1)]
    chosen = _drawn(ordered[:, None], count, h, generator)
    return ordered[chosen].sort().values


def rows_near(rows: Tensor, count: int, generator: torch.Generator, rounds: int = 30) -> tuple[Tensor, Tensor]:
    """At most `count` centres of rows [n, d], and for each row the place of the nearest: [k, d] and int64 [n].

    Lloyd's algorithm from `kmeans++`; a centre that nothing is near starts again at the row that is worst off.

    Source: Gong et al. (2014), Compressing Deep Convolutional Networks using Vector Quantization, section 3.
    """
    rows = rows.double()
    centres = rows[_drawn(rows, count, rows.new_ones(len(rows)), generator)]
    found, distance = _assigned(rows, centres)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, found, rows)
        sizes = torch.bincount(found, minlength=len(centres))
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
        empty = (sizes == 0).nonzero().reshape(-1)
        centres[empty] = rows[distance.topk(len(empty)).indices]
        before = found
        found, distance = _assigned(rows, centres)
        if torch.equal(before, found):
            break
    return centres, found


def _assigned(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row, and its squared distance."""
    found, distances = [], []
    for some in torch.split(rows, max(1, _CHUNK // len(centres))):
        squared = (centres**2).sum(1) - 2 * some @ centres.T  # without the row's own square, the same for all
        least = squared.min(1)
        found.append(least.indices)
        distances.append(least.values + (some**2).sum(1))
    return torch.cat(found), torch.cat(distances)


def _drawn(rows: Tensor, count: int, h: Tensor, generator: torch.Generator) -> Tensor:
    """Places of at most `count` different rows, drawn with chances of h times the squared distance to the nearest."""
    chosen = [int(_draw(h, generator))]
    distance = ((rows - rows[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count and bool((distance > 0).any()):
        chosen.append(int(_draw(h * distance, generator)))
        distance = torch.minimum(distance, ((rows - rows[chosen[-1]]) ** 2).sum(1))
    return torch.tensor(chosen)


def _draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """A place, as likely as its chance says; `multinomial` takes no more than 2^24 of them."""
    total = chances.cumsum(0)
    point = torch.rand(1, generator=generator, dtype=total.dtype) * total[-1]
    return torch.searchsorted(total, point, right=True).clamp_max(len(total) - 1)
