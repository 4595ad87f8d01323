"""Batch: the batch size that costs least per sample, for the network that was chosen."""

from __future__ import annotations

import math
from typing import Any

from trimtab.core.goal import Goal
from trimtab.core.metric import show
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared, settled
from trimtab.profile.batch import LARGEST, BatchPoint, cheapest, knee, sweep
from trimtab.run.cpu import Cpu


def batch_facts(prepared: Prepared, goal: Goal, winner: Point) -> dict[str, Any] | None:
    """What the winner costs by batch size, and which one to take; None unless the goal minimises `cost` here.

    The network is chosen by its cost at the target's batch; then its batches are measured with the target's threads,
    and the cheapest is taken whose latency keeps the goal's bound. Measured once for a winner, kept for a resumed run.

    Args:
        prepared: the task.
        goal: what must hold; `at_most` latency is that of a whole batch.
        winner: the chosen point.
    """
    device = prepared.device
    if goal.minimise != "cost" or not isinstance(device, Cpu):
        return None
    most, target = goal.at_most.get("latency", math.inf), prepared.context.target

    def measured() -> dict[str, Any]:
        points = sweep(winner.file, target, largest=max(LARGEST, target.batch), most=most)
        return _facts(points, most)

    found: dict[str, Any] = settled(prepared, f"batches of {winner.name} at most {most}", measured)
    return found


def _facts(points: tuple[BatchPoint, ...], most: float) -> dict[str, Any]:
    best = cheapest(points, most)
    data: dict[str, Any] = {
        "best": None if best is None else best.batch,
        "knee": knee(points).batch,
        "at_most": None if math.isinf(most) else most,
        "points": [point.json() for point in points],
    }
    return {**data, "told": _told(points, best, most)}


def _told(points: tuple[BatchPoint, ...], best: BatchPoint | None, most: float) -> str:
    limit = "" if math.isinf(most) else f" within {show(most, 's')}"
    if best is None:
        return f"No batch keeps the bound on latency{limit}: a single sample takes {show(points[0]['latency'], 's')}."
    first = points[0]
    return (
        f"The cheapest batch{limit} is {best.batch}: {show(best['cost'], 's')} of a core per sample, "
        f"{show(first['cost'], 's')} at batch {first.batch}; a batch of {best.batch} takes "
        f"{show(best['latency'], 's')} in {best.runtime}. The curve bends at batch {knee(points).batch}."
    )
