"""Thresholds: how sure an exit must be, chosen on data for the least expected cost at a bounded drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEVER = 2.0
"""A threshold that no confidence reaches."""
_CANDIDATES = 40
_PRICES = 24
_PASSES = 4
_WORK = 4e9
"""Numbers that may be looked at in all; large outputs get fewer prices."""
Value = Callable[[Tensor], float]
"""How good answers [N, classes] are, more being better."""


@dataclass(frozen=True)
class Chosen:
    """Thresholds, and what they gave on the data that they were chosen on.

    Args:
        thresholds: of each exit in order, `NEVER` where it does not pay.
        drop: of the score.
        cost: expected, as a share of that of the network without exits.
        shares: of the inputs that leave at each exit, and at the end.
    """

    thresholds: tuple[float, ...]
    drop: float
    cost: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """What it costs to leave, as shares of the cost of the network without exits.

    Args:
        until: what the network has done at each exit.
        heads: what each exit's head adds.
    """

    until: tuple[float, ...]
    heads: tuple[float, ...]

    def of(self, thresholds: Sequence[float]) -> np.ndarray[Any, Any]:
        """The cost of leaving at each exit and at the end, with the heads on the way; unused ones cost nothing."""
        heads = np.cumsum([h if t < NEVER else 0.0 for h, t in zip(self.heads, thresholds, strict=True)])
        found: np.ndarray[Any, Any] = np.array([*self.until, 1.0]) + np.append(heads, heads[-1:] if len(heads) else 0.0)
        return found


def leaving(sure: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The index of the exit at which each input leaves, int64 [N]; the number of exits for the end.

    Args:
        sure: confidences [N, exits].
        thresholds: of each exit.
    """
    passed = sure >= torch.tensor(thresholds, dtype=sure.dtype)
    end = torch.ones(len(sure), 1, dtype=torch.bool)
    return torch.cat([passed, end], 1).int().argmax(1)


def outcome(logits: Tensor, sure: Tensor, thresholds: Sequence[float], costs: Costs, value: Value) -> Chosen:
    """What thresholds give on data.

    Args:
        logits: of each exit and of the end, [N, exits + 1, classes].
        sure: confidences [N, exits].
        thresholds: of each exit.
        costs: of leaving.
        value: of answers.
    """
    taken = leaving(sure, thresholds)
    drop = value(logits[:, -1]) - value(logits[torch.arange(len(taken)), taken])
    shares = torch.bincount(taken, minlength=logits.shape[1]).double() / len(taken)
    return Chosen(tuple(thresholds), drop, float(costs.of(thresholds) @ shares.numpy()), tuple(shares.tolist()))


def choose(logits: Tensor, sure: Tensor, costs: Costs, value: Value, max_drop: float) -> Chosen:
    """The thresholds of least expected cost whose drop is at most `max_drop`.

    minimise sum_n cost(exit of n)   such that   value(end) - value(answers) <= max_drop

    By Lagrange's multiplier: for prices of a drop from dear to cheap, one exit's threshold after the other is
    chosen among quantiles of its confidences, until nothing changes; of all that was seen, the cheapest that
    keeps the bound is the answer. An exit that never pays its head is left out.

    Args:
        logits: of each exit and of the end, [N, exits + 1, classes], calibrated.
        sure: confidences [N, exits].
        costs: of leaving.
        value: of answers; its unit is that of `max_drop`.
        max_drop: 0 or more.
    """
    exits = sure.shape[1]
    candidates = [_quantiles(sure[:, k]) for k in range(exits)]
    best = now = outcome(logits, sure, (NEVER,) * exits, costs, value)
    rounds = max(1, exits * _CANDIDATES * _PASSES)
    prices = int(min(max(_WORK / (rounds * max(logits[:, 0].numel(), 1)), 6), _PRICES))
    scale = max(max_drop, 1e-4)
    for price in np.geomspace(100 / scale, 0.03 / scale, prices):
        for _ in range(_PASSES):
            before = now
            for k in range(exits):
                tried = [_with(now.thresholds, k, t) for t in candidates[k]]
                found = [outcome(logits, sure, each, costs, value) for each in tried]
                now = min([now, *found], key=lambda c: c.cost + price * max(c.drop, 0.0))
                allowed = [c for c in found if c.drop <= max_drop + 1e-12]
                best = min([best, *allowed], key=lambda c: c.cost)
            if now.thresholds == before.thresholds:
                break
    return best


def _quantiles(sure: Tensor) -> list[float]:
    """Thresholds that let between none and all of the inputs leave."""
    levels = torch.linspace(0, 1, _CANDIDATES, dtype=torch.float64)
    found = torch.quantile(sure.double(), levels).tolist()
    return [*sorted({math.floor(each * 1e6) / 1e6 for each in found}), NEVER]


def _with(thresholds: tuple[float, ...], k: int, value: float) -> tuple[float, ...]:
    return (*thresholds[:k], value, *thresholds[k + 1 :])
