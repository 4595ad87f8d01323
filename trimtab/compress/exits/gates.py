"""Gates: small networks that decide, for each sample, which parts of a network run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.train.features import tapped
from trimtab.train.recipe import Recipe
from trimtab.train.rule import State
from trimtab.train.step import Training

NAME = "gates"
"""What the parameters of gates begin with."""
_OPEN = 2.0
"""The score that gates start at: sigmoid(2) = 0.88 of them open."""


class Decider(nn.Module):
    """The score of each part: mean over positions, linear, ReLU, linear; a part runs where it is 0 or more.

    Args:
        channels: of what it reads.
        parts: scores it gives: 1 for a block, one for each channel that is gated.
        hidden: width between.
        last: channels are the last dimension.
    """

    def __init__(self, channels: int, parts: int, hidden: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, parts)
        with torch.no_grad():
            self.second.weight.mul_(0.1)
            self.second.bias.fill_(_OPEN)

    def forward(self, x: Tensor) -> Tensor:
        """The scores [N, parts]."""
        if x.ndim > 2:
            x = x.mean(tuple(range(1, x.ndim - 1)) if self.last else tuple(range(2, x.ndim)))
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]

    def along(self, z: Tensor, like: Tensor) -> Tensor:
        """[N, parts] with the dimensions of what is gated, to be broadcast."""
        if like.ndim == 2:
            return z
        ones = [1] * (like.ndim - 2)
        return z.reshape(-1, *ones, z.shape[1]) if self.last else z.reshape(-1, z.shape[1], *ones)


class Skip(nn.Module):
    """A block for some samples: y = z(x) ? joined : x, where `joined` is x with the block's part added."""

    def __init__(self, gate: Decider) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor, joined: Tensor) -> Tensor:
        """The block's input and its output, of one shape."""
        return torch.where(self.gate.along(self.gate(x) >= 0, x), joined, x)


class Mask(nn.Module):
    """Channels for some samples: y = z(x) * h."""

    def __init__(self, gate: Decider) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """What the gate reads, and what it gates."""
        return h * self.gate.along((self.gate(x) >= 0).to(h.dtype), h)


class Learning(nn.Module):
    """A gate as it trains, with a sampled z: y = rest + z (whole - rest), where the rest is x, or nothing.

    Args:
        gate: what decides.
        blocks: the rest is x.
    """

    def __init__(self, gate: Decider, blocks: bool) -> None:
        super().__init__()
        self.gate, self.blocks = gate, blocks

    def forward(self, x: Tensor, whole: Tensor) -> Tensor:
        """What the gate reads, and what it gates."""
        z = self.gate.along(sampled(self.gate(x), self.training), whole)
        return x + z * (whole - x) if self.blocks else z * whole


def sampled(score: Tensor, noisy: bool) -> Tensor:
    """0 or 1, with the gradient of what was rounded: straight through (eq. 12).

    z = [s + g >= 0],   dz/ds = sigmoid'(s + g),   g = log u - log(1 - u) with u uniform, the difference of two Gumbels

    u is Phi(n) of a normal n, which is 0 where the graph evaluates.

    Args:
        score: s, [N, parts].
        noisy: whether g is drawn; else it is 0.

    Source: Jang, Gu & Poole (2017), Categorical Reparameterization with Gumbel-Softmax, sections 2.1 and 2.2;
    Veit & Belongie (2018), section 3.2.
    """
    if noisy:
        uniform = 0.5 * (1 + torch.erf(torch.randn_like(score) / math.sqrt(2)))
        score = score + torch.logit(uniform, 1e-6)
    soft = torch.sigmoid(score)
    return (score >= 0).to(soft.dtype) + (soft - soft.detach())


@dataclass(frozen=True)
class KeepRate:
    """The mean share of the gated work that runs is held at a target.

    L = weight (sum_l c_l mean(z_l) / sum_l c_l - rate)^2

    Args:
        gates: names of the nodes of z_l, with the share c_l of the work that each gates.
        rate: 0 to 1.
        weight: of the term.

    Source: Veit & Belongie (2018), Convolutional Networks with Adaptive Inference Graphs, equation 5; ours has one
    target for the work of all gates, not one for each, so that important blocks may run more often.
    """

    gates: Mapping[str, float]
    rate: float
    weight: float

    def begin(self, training: Training, recipe: Recipe) -> State:
        """The network keeps the gates' answers of each call."""
        net = training.graph.net
        net.meta[NAME] = tapped(net, tuple(self.gates))
        return {}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """The loss above, of the last call."""
        seen: Mapping[str, Tensor] = training.graph.net.meta[NAME]
        runs = torch.stack([cost * seen[name].float().mean() for name, cost in self.gates.items()]).sum()
        return self.weight * (runs / sum(self.gates.values()) - self.rate).square()

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Nothing."""

    def end(self, training: Training, state: State) -> None:
        """Nothing."""
