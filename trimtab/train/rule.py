"""Rule: what a training does beside following its loss, such as holding weights at zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from trimtab.train.recipe import Recipe
    from trimtab.train.step import Training

State = dict[str, Tensor]
"""What a rule remembers, by name; kept in checkpoints and changed in place."""


@runtime_checkable
class Rule(Protocol):
    """A frozen dataclass of JSON values, part of the recipe and so of what names a training in the store.

    `training.tensors` are the parameters and buffers by name, `training.steps` counts the steps done.
    What a rule draws at random it draws from the recipe's seed and the step alone.
    """

    def begin(self, training: Training, recipe: Recipe) -> State:
        """The state before the first step; weights may be changed in place."""
        ...

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """What is added to the loss of a step: a tensor with no dimension, or nothing."""
        ...

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Called after each step of the optimiser, which `training.steps` counts; gradients are still there."""
        ...

    def end(self, training: Training, state: State) -> None:
        """Called once before the result is read, of `training.tensors` and, above them, `training.average`."""
        ...
