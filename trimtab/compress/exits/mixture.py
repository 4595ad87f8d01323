"""Mixture: hidden neurons in groups of one size, a router to them, and the layer that uses a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_ROUNDS = 20
_RIDGE = 1e-3


@dataclass(frozen=True)
class Split:
    """A feed-forward layer and its division.

    Args:
        w1: [width, d]. b1: [width], or None. w2: [out, width]. b2: [out], or None.
        weight: of the router, [experts, d].
        bias: [experts].
        groups: the neurons of each expert, int64 [experts, width / experts].
    """

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    weight: Tensor
    bias: Tensor
    groups: Tensor


def balanced(rows: Tensor, count: int, seed: int) -> Tensor:
    """Clusters of one size with like rows: k-means whose assignment fills each centre up to its size.

    Rows are compared at unit length. Of all pairs, nearest first, a row takes a centre that has room.

    Args:
        rows: [n, d], n a multiple of `count`.
        count: clusters.
        seed: of the first centres.

    Returns:
        the rows of each cluster, int64 [count, n / count].

    Source: Malinen & Fränti (2014), Balanced k-means for clustering, whose assignment is exact, ours greedy.
    """
    unit = functional.normalize(rows.double(), dim=1)
    n, room = len(unit), len(unit) // count
    generator = torch.Generator().manual_seed(seed)
    centres = unit[torch.randperm(n, generator=generator)[:count]]
    owner = torch.full((n,), -1)
    for _ in range(_ROUNDS):
        fresh = _assigned(torch.cdist(unit, centres), room)
        if torch.equal(fresh, owner):
            break
        owner = fresh
        centres = torch.stack([unit[owner == k].mean(0) for k in range(count)])
    return torch.stack([(owner == k).nonzero()[:, 0] for k in range(count)])


def _assigned(distance: Tensor, room: int) -> Tensor:
    """The cluster of each row: pairs nearest first, each cluster up to its size."""
    n, count = distance.shape
    owner, left = torch.full((n,), -1), [room] * count
    order = torch.argsort(distance.reshape(-1), stable=True)
    for pair in order.tolist():
        row, k = divmod(pair, count)
        if int(owner[row]) < 0 and left[k]:
            owner[row] = k
            left[k] -= 1
    return owner


def router(w1: Tensor, groups: Tensor, x: Tensor | None, h: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight [experts, d] and bias [experts] that predict how active each expert is.

    minimise ||X R' + c - S||^2 + ridge ||R||^2,   S_ti = sum over the neurons j of expert i of max(h_tj, 0)

    Args:
        w1: [width, d].
        groups: int64 [experts, size].
        x: inputs [T, d]; None: the mean row of each expert, its parameter centre.
        h: activations [T, width].
    """
    if x is None or h is None:
        return w1[groups].mean(1).clone(), torch.zeros(len(groups), dtype=w1.dtype)
    wanted = h.double().clamp_min(0)[:, groups].sum(2)  # [T, experts]
    centred = x.double() - x.double().mean(0)
    gram = centred.T @ centred
    scale = float(gram.diagonal().mean()) or 1.0
    gram += _RIDGE * scale * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0))).T
    bias = wanted.mean(0) - weight @ x.double().mean(0)
    return weight.to(w1.dtype).contiguous(), bias.to(w1.dtype)


def ordered(split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W1, b1, W2 and b2 with the neurons expert by expert; biases that are not there are zero."""
    order = split.groups.reshape(-1)
    b1 = split.w1.new_zeros(len(split.w1)) if split.b1 is None else split.b1
    b2 = split.w2.new_zeros(len(split.w2)) if split.b2 is None else split.b2
    return split.w1[order], b1[order], split.w2[:, order], b2.clone()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def acted(h: Tensor, activation: str) -> Tensor:
    """`relu`, `gelu` or `silu` of a tensor."""
    if activation == "gelu":
        return functional.gelu(h)
    return functional.silu(h) if activation == "silu" else functional.relu(h)


class Gathered(nn.Module):
    """A mixture on vectors [N, d]: the weights of each sample's experts are read, and no others.

    Args:
        split: the layer and its division.
        active: experts that each sample uses.
        activation: between the two layers.
    """

    def __init__(self, split: Split, active: int, activation: str) -> None:
        super().__init__()
        experts, self.size = split.groups.shape
        self.active, self.activation = active, activation
        w1, b1, w2, b2 = ordered(split)
        self.router = linear(split.weight, split.bias)
        self.first = nn.Parameter(w1.reshape(experts, -1).clone())  # [experts, size d]
        self.first_bias = nn.Parameter(b1.reshape(experts, -1).clone())
        self.second = nn.Parameter(w2.T.reshape(experts, -1).clone())  # [experts, size out]
        self.bias = nn.Parameter(b2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, d] to [N, out]."""
        width, out = self.active * self.size, self.bias.shape[0]
        chosen = torch.topk(self.router(x), self.active, 1).indices  # [N, active]
        w1 = functional.embedding(chosen, self.first).reshape(-1, width, x.shape[1])
        b1 = functional.embedding(chosen, self.first_bias).reshape(-1, width)
        h = acted(torch.matmul(w1, x.unsqueeze(2)).squeeze(2) + b1, self.activation)
        w2 = functional.embedding(chosen, self.second).reshape(-1, width, out)
        return torch.matmul(h.unsqueeze(1), w2).squeeze(1) + self.bias


class Masked(nn.Module):
    """A mixture on sequences [N, L, d]: all is computed, and what a step's experts do not answer for is zero.

    Args:
        split: the layer and its division.
        active: experts that each step uses.
        activation: between the two layers.
    """

    def __init__(self, split: Split, active: int, activation: str) -> None:
        super().__init__()
        self.size, self.active, self.activation = split.groups.shape[1], active, activation
        w1, b1, w2, b2 = ordered(split)
        self.router = linear(split.weight, split.bias)
        self.first, self.second = linear(w1, b1), linear(w2, b2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, d] to [N, L, out]."""
        scores = self.router(x)
        least = torch.topk(scores, self.active, -1).values[..., -1:]
        used = (scores >= least).to(x.dtype)  # [N, L, experts]
        h = acted(self.first(x), self.activation)
        h = h.reshape(*used.shape, self.size) * used.unsqueeze(-1)
        return self.second(h.reshape(*used.shape[:-1], -1))  # type: ignore[no-any-return]
