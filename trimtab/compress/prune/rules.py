"""Rules of trainings that make a network ready to be pruned: network slimming, and soft pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.compress.prune.allocation import best
from trimtab.compress.prune.magnitude import weight_score
from trimtab.compress.prune.units import spread
from trimtab.graph.coupling import Member

if TYPE_CHECKING:
    from trimtab.train.recipe import Recipe
    from trimtab.train.rule import State
    from trimtab.train.step import Training

_TINY = 1e-30


@dataclass(frozen=True)
class Slimming:
    """Add lambda sum abs(gamma) to the loss: scales of channels that are not needed go towards zero.

    Args:
        scales: names of the batch norms' scales gamma.
        strength: lambda.

    Source: Liu et al. (2017), Learning Efficient Convolutional Networks through Network Slimming, eq. 1.
    """

    scales: tuple[str, ...]
    strength: float

    def begin(self, training: Training, recipe: Recipe) -> State:
        """Nothing is remembered."""
        return {}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor:
        """lambda sum abs(gamma)."""
        return self.strength * torch.stack([training.tensors[name].abs().sum() for name in self.scales]).sum()

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Nothing."""

    def end(self, training: Training, state: State) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Softly:
    """A group under soft pruning.

    Args:
        name: of the group.
        keep: how many of its units stay.
        ranked: its weights, by whose norms units are ranked.
        read: the weights through which its units are read, which are zeroed.
    """

    name: str
    keep: int
    ranked: tuple[Member, ...]
    read: tuple[Member, ...]


@dataclass(frozen=True)
class Soft:
    """After every so many steps and at the end, silence each group's units of the least l2 norm; they go on learning.

    A unit is silenced by zeros in the weights that read it: what the network then computes is what the cut one
    will, and its gradients bring it back if it is needed.

    Args:
        groups: what is silenced.
        every: steps between.

    Source: He et al. (2018), Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, section 3.2 and
    algorithm 1. There the filters that make a unit are zeroed; behind batch norm these leave its shift in the network,
    and have gradients 1 / sqrt(eps) times as large as those of any other filter.
    """

    groups: tuple[Softly, ...]
    every: int

    def begin(self, training: Training, recipe: Recipe) -> State:
        """Nothing is remembered."""
        return {}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> None:
        """Nothing."""

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Silence the lowest where a period is over."""
        if training.steps % self.every == 0:
            silence(self.groups, training.tensors, [training.tensors])

    def end(self, training: Training, state: State) -> None:
        """Silence the lowest of what will be the result."""
        result = {**training.tensors, **training.average}
        silence(self.groups, result, [training.tensors, training.average])


@torch.no_grad()
def silence(groups: Sequence[Softly], ranked: Mapping[str, Tensor], zeroed: Sequence[Mapping[str, Tensor]]) -> None:
    """Zero what reads all but the `keep` units of highest l2 norm in each group, in place.

    Args:
        groups: which.
        ranked: tensors by name whose norms decide.
        zeroed: tensors by name that are changed.
    """
    for group in groups:
        parts = [weight_score(ranked, member, "l2") for member in group.ranked]
        score = torch.stack([part / part.mean().clamp_min(_TINY) for part in parts]).mean(0)
        stays = torch.zeros(len(score), dtype=torch.bool)
        stays[best(score, group.keep)] = True
        for member in group.read:
            index, unit = spread(member)
            lost = index[~stays[unit]]
            for tensors in zeroed:
                if member.parameter in tensors:
                    weight = tensors[member.parameter]
                    weight.index_fill_(member.dim, lost.to(weight.device), 0.0)


def silent(tensors: Mapping[str, Tensor], read: Sequence[Member]) -> Tensor:
    """Which units are read through zeros alone: booleans [size].

    Args:
        tensors: parameters by name.
        read: the weights through which the group's units are read, one at least.
    """
    found = [weight_score(tensors, member, "l1") == 0 for member in read]
    return torch.stack(found).all(0)
