"""Zeros: weights that are exactly zero stay so while a network trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.graph.model import Graph
from trimtab.graph.packed_sparse import SPARSE
from trimtab.train.rule import State

if TYPE_CHECKING:
    from trimtab.train.recipe import Recipe
    from trimtab.train.step import Training


@dataclass(frozen=True)
class HoldZeros:
    """Values that are exactly zero when the training begins are zero after every step, and in its moving average.

    Of parameters of at least two dimensions, whatever momentum and weight decay would make of them. A weight that is
    zero as a whole is one that has yet to learn, and is held with `least=0` only.

    Args:
        least: the share of zeros from which a weight is held.
    """

    least: float = SPARSE

    def begin(self, training: Training, recipe: Recipe) -> State:
        """For each sparse weight, where it is zero."""
        found = trained(training)
        return {name: value.detach() == 0 for name, value in found.items() if _partly(value, self.least)}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """None."""
        return None

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Zeros again."""
        hold(training.tensors.items(), state)

    def end(self, training: Training, state: State) -> None:
        """Zeros in the average too."""
        hold(training.average.items(), state)


def trained(training: Training) -> dict[str, Tensor]:
    """The weights of a training, by name: parameters of at least two dimensions that learn."""
    every = training.tensors.items()
    return {k: v for k, v in every if v.requires_grad and v.ndim > 1 and v.is_floating_point()}


@torch.no_grad()
def hold(tensors: Iterable[tuple[str, Tensor]], zeros: State) -> None:
    """Write zeros, in place, where `zeros` [of each tensor's shape, by its name] is true."""
    for name, value in tensors:
        if name in zeros:
            value.masked_fill_(zeros[name].to(value.device), 0.0)


def share(weight: Tensor) -> float:
    """The share of values that are exactly zero, 0 to 1."""
    return 1 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)


def is_sparse(weight: Tensor, least: float = SPARSE) -> bool:
    """Whether at least that share of a weight, and some of it, is exactly zero."""
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    return zeros >= max(least * weight.numel() * (1 - 1e-9), 1)  # shares of whole numbers round


def _partly(weight: Tensor, least: float = SPARSE) -> bool:
    """Whether a weight is sparse, and not zero as a whole; with `least` 0, whether it has any zero."""
    return is_sparse(weight, least) and (least == 0 or bool(weight.any()))


def has_sparse(graph: Graph) -> bool:
    """Whether a graph holds a sparse weight that learns."""
    return any(p.requires_grad and p.ndim > 1 and _partly(p.detach()) for p in graph.net.parameters())
