"""Schedules: how much is gone after each round of pruning."""

from __future__ import annotations

from typing import Literal, get_args

Schedule = Literal["once", "iterative", "cubic"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def shares(schedule: Schedule, ratio: float, rounds: int) -> tuple[float, ...]:
    """The share s_r of the original that is gone after each round r = 1 ... R; the last is `ratio`.

    `iterative`: s_r = 1 - (1 - ratio)^(r / R), the same share of what is left in each round (Frankle & Carbin
    2019, The Lottery Ticket Hypothesis, section 2); `cubic`: s_r = ratio - ratio (1 - r / R)^3, much at first
    (Zhu & Gupta 2017, To Prune, or Not to Prune, eq. 1, from nothing gone); `once`: all in one round.

    Args:
        schedule: which.
        ratio: share to be gone at the end.
        rounds: R, at least 1.
    """
    if schedule == "once":
        return (ratio,)
    steps = [r / rounds for r in range(1, rounds + 1)]
    if schedule == "cubic":
        return tuple(ratio - ratio * (1 - t) ** 3 for t in steps)
    return (*(1 - (1 - ratio) ** t for t in steps[:-1]), ratio)
