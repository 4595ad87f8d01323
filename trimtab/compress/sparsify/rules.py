"""Rules: weights that become sparse, or move their zeros, while the network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from trimtab.compress.sparsify.pattern import POOL, masks, pattern_of, rows_of, weight_of
from trimtab.core.store import digest
from trimtab.train.recipe import Recipe
from trimtab.train.rule import State
from trimtab.train.step import Training
from trimtab.train.zeros import hold

_ZEROS, _SCORE, _HELD, _COUNT = "zeros/", "score/", "held/", "count/"


@dataclass(frozen=True)
class Gradual:
    """More and more weights become zero: from step `first` to `last`, every so many steps.

        k_t = k_f + (k_0 - k_f) (1 - (t - t_0) / (t_1 - t_0))^3

    of k_0 weights that are not zero at the start stay after step t. The highest scores stay: `magnitude` is abs(w);
    a zero stays zero. `movement` adds up -w dL/dw from the start, of zeros too, whose values are held back: they may
    return.

    Args:
        keep: how many values of each weight stay at the end, by name; under `*`, of all others together.
        axes: the weights, by name, with their dimension of outputs.
        pattern: where zeros may lie; of N:M, groups are cut to N at the first of the steps.
        first: the step after which weights become zero, at the earliest.
        last: the step after which as few are left as `keep` says.
        every: steps from one choice to the next.
        score: `magnitude` or `movement`.

    Source: Zhu & Gupta (2017), To Prune, or Not to Prune, equation 1; Sanh, Wolf & Rush (2020), Movement Pruning,
    section 4, equation 4, whose scores have a learning rate that ranks nothing differently.
    """

    keep: Mapping[str, int]
    axes: Mapping[str, int]
    pattern: str = "free"
    first: int = 0
    last: int = 1
    every: int = 1
    score: Literal["magnitude", "movement"] = "magnitude"

    def begin(self, training: Training, recipe: Recipe) -> State:
        """Where each weight is zero and how many are not; of movement, no scores yet and the weights as they are."""
        weights = {name: training.tensors[name].detach() for name in self.axes}
        state = {_ZEROS + name: value == 0 for name, value in weights.items()}
        state |= {_COUNT + name: torch.count_nonzero(value).cpu() for name, value in weights.items()}
        if self.score == "movement":
            state |= {_SCORE + name: torch.zeros_like(value) for name, value in weights.items()}
            state |= {_HELD + name: value.clone() for name, value in weights.items()}
        return state

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """None."""
        return None

    @torch.no_grad()
    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Zeros again, and more of them where it is time."""
        if self.score == "movement":
            self._moved(training, state)
        hold(training.tensors.items(), _named(state, _ZEROS))
        t = training.steps
        if (self.first < t < self.last and (t - self.first) % self.every == 0) or t == self.last:
            self._choose(training, state)

    def end(self, training: Training, state: State) -> None:
        """Zeros in the average too."""
        hold(training.average.items(), _named(state, _ZEROS))

    def _moved(self, training: Training, state: State) -> None:
        for name in self.axes:
            value, held = training.tensors[name], state[_HELD + name]
            if value.grad is not None:
                state[_SCORE + name] -= held * value.grad
            state[_HELD + name] = torch.where(state[_ZEROS + name], held, value.detach())

    def _choose(self, training: Training, state: State) -> None:
        scores, moving = {}, self.score == "movement"
        for name, axis in self.axes.items():
            score = state[_SCORE + name] if moving else training.tensors[name].detach().abs()
            scores[name] = rows_of(score, axis)
        for name, mask in masks(scores, self._left(training.steps, state), pattern_of(self.pattern)).items():
            value, zeros = training.tensors[name], state[_ZEROS + name]
            gone = ~weight_of(mask, value, self.axes[name])
            zeros.copy_(gone if moving else gone | zeros)
            if moving:
                value.copy_(state[_HELD + name])
        hold(training.tensors.items(), _named(state, _ZEROS))

    def _left(self, steps: int, state: State) -> dict[str, int]:
        """How many weights stay after a step."""
        done = (steps - self.first) / max(self.last - self.first, 1)
        pool = [n for n in self.axes if n not in self.keep]
        whole = {n: int(state[_COUNT + n]) for n in self.axes}
        whole[POOL] = sum(whole[n] for n in pool)
        return {n: k + round((whole[n] - k) * (1 - min(done, 1.0)) ** 3) for n, k in self.keep.items()}


@dataclass(frozen=True)
class Moving:
    """As many zeros from the first step to the last, but not the same: the least weights go, others grow from zero.

    Every so many steps up to `last`, of each weight's values that are not zero a share with the least abs(w) becomes
    zero, and as many zeros are free to learn: those with the greatest abs(dL/dw) (`rigl`), where the share falls as
    fraction (1 + cos(pi t / last)) / 2, or random ones (`set`). What grows starts at zero and without momentum.

    Args:
        kind: `rigl` or `set`.
        names: the weights.
        every: steps from one move to the next.
        last: no move after this step.
        fraction: the share at the start.

    Source: Evci et al. (2020), Rigging the Lottery, algorithm 1 (its moves take the place of a step of the optimiser,
    ours follow one with the same gradient); Mocanu et al. (2018), Scalable Training of Artificial Neural Networks with
    Adaptive Sparse Connectivity, algorithm 1.
    """

    kind: Literal["set", "rigl"]
    names: tuple[str, ...] = field(default_factory=tuple)
    every: int = 100
    last: int = 0
    fraction: float = 0.3

    def begin(self, training: Training, recipe: Recipe) -> State:
        """Where each weight is zero."""
        return {_ZEROS + name: training.tensors[name].detach() == 0 for name in self.names}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """None."""
        return None

    @torch.no_grad()
    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Zeros again, some of them elsewhere where it is time."""
        hold(training.tensors.items(), _named(state, _ZEROS))
        t = training.steps
        if t > self.last or t % self.every:
            return
        share = self.fraction
        if self.kind == "rigl":
            share *= (1 + math.cos(math.pi * t / max(self.last, 1))) / 2
        for name in self.names:
            self._move(training, state[_ZEROS + name], name, share, recipe.seed)
        hold(training.tensors.items(), _named(state, _ZEROS))

    def end(self, training: Training, state: State) -> None:
        """Zeros in the average too."""
        hold(training.average.items(), _named(state, _ZEROS))

    def _move(self, training: Training, zeros: Tensor, name: str, share: float, seed: int) -> None:
        weight, flat = training.tensors[name], zeros.flatten()
        active = int((~flat).sum())
        count = min(int(share * active), flat.numel() - active)
        if count < 1:
            return
        size = weight.detach().abs().flatten().masked_fill(flat.to(weight.device), torch.inf)
        dropped = torch.sort(size, stable=True).indices[:count].to(flat.device)
        if self.kind == "rigl" and weight.grad is not None:
            wish = weight.grad.abs().flatten().to(flat.device)
        else:
            generator = torch.Generator().manual_seed(int(digest("grow", seed, training.steps, name)[:8], 16))
            wish = torch.rand(flat.numel(), generator=generator).to(flat.device)
        can = flat.clone()
        can[dropped] = self.kind == "rigl"  # what RigL has just dropped may stay, where its gradient says so
        grown = torch.sort(wish.masked_fill(~can, -1.0), descending=True, stable=True).indices[:count]
        fresh = flat.clone()
        fresh[dropped] = True
        fresh[grown] = False
        _restart(training, weight, grown[flat[grown]])
        zeros.copy_(fresh.reshape(zeros.shape))


def _restart(training: Training, weight: Tensor, grown: Tensor) -> None:
    """Values that grow are zero, with nothing left of what the optimiser remembers of them."""
    slots = [v for v in training.optimiser.state.get(weight, {}).values() if isinstance(v, Tensor)]
    at = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    at[grown.to(weight.device)] = True
    for value in (weight, *(v for v in slots if v.shape == weight.shape)):
        value.masked_fill_(at.reshape(weight.shape), 0.0)


def _named(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
