"""Answers: what the teacher said of a batch, kept for every training that shows it the same batch again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.store import Store, digest
from trimtab.train.recipe import Recipe

_LARGEST = 65_536
"""Numbers in the answer to one batch; larger ones (words, pixels) are asked for again."""


@dataclass
class Answers:
    """A store of the teacher's outputs by a hash of its inputs, one file for each epoch.

    Trainings of one seed see the same batches in the same order, so that of many candidates only the
    first one waits for the teacher. Whatever the data do, an answer is never taken for other inputs.

    Args:
        store: where they are kept.
        name: of teacher, precision, layout and seed.
        epoch: the one whose answers are at hand.
        known: its answers by the hash of the inputs.
        fresh: some are not stored yet.
    """

    store: Store
    name: str
    epoch: int = -1
    known: dict[str, Tensor] = field(default_factory=dict)
    fresh: bool = False

    def to(self, inputs: Sequence[Tensor], epoch: int, ask: Callable[[], Any]) -> Any:
        """The answer to these inputs; asked for where it is not known."""
        if epoch != self.epoch:
            self.keep()
            self.epoch = epoch
            self.known = self.store.tensors(self._key()) if self.store.get(self._key()) is not None else {}
        key = digest(*inputs)
        if key in self.known:
            return self.known[key]
        answer = ask()
        if isinstance(answer, Tensor) and answer.numel() <= _LARGEST:
            self.known[key] = answer
            self.fresh = True
        return answer

    def keep(self) -> None:
        """Store what is new."""
        if self.fresh:
            self.store.put(self._key(), {"answers": len(self.known)}, self.known)
            self.fresh = False

    def _key(self) -> str:
        return f"{self.name}-{self.epoch}"


def answers_for(context: Context, recipe: Recipe, teacher: str) -> Answers | None:
    """Where a training keeps the teacher's answers; None without a store, or where hashing costs a transfer.

    Args:
        teacher: a hash of the teacher's nodes and weights.
    """
    if context.store is None or context.device != "cpu":
        return None
    setting = [recipe.precision, recipe.channels_last, recipe.seed, torch.get_num_threads(), torch.__version__]
    return Answers(context.store, f"answers-{digest(teacher, setting)}")
