"""Candidates: plans for many budgets, from the exact allocation, in seconds of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.compress.allocate import Assignment, Factor, Site, allocate, total
from trimtab.core.context import Progress
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.pipeline.space import COSTS, Space

BUDGETS = (0.8, 0.66, 0.55, 0.46, 0.38, 0.31, 0.25)
"""Shares of the quantised original's cost that plans are made for."""
_MARGIN = 0.98
"""A bound is allocated with this share of it: the table was 2 % off where it was checked on ResNet-20."""


@dataclass(frozen=True)
class Candidate:
    """A plan to try.

    Args:
        name: short.
        point: the choice at each site.
        plan: its steps without training.
        predicted: its costs by the table: latency (s), size (byte), macs.
        loss: the loss that the sensitivities add up to.
    """

    name: str
    point: Assignment
    plan: Plan
    predicted: Mapping[str, float]
    loss: float


def candidates(
    space: Space,
    sites: Sequence[Site],
    factors: Sequence[Factor],
    bounds: Mapping[str, float],
    minimise: str,
    progress: Progress,
    budgets: Sequence[float] = (1.0, *BUDGETS),
) -> tuple[Candidate, ...]:
    """The plans of least loss under the bounds, for each budget of what is minimised, cheapest last.

    Args:
        space: the sites' space.
        sites: with their losses.
        factors: with their costs.
        bounds: hard upper bounds by cost name, in seconds and bytes.
        minimise: the cost to spread budgets over.
        progress: called for each budget.
        budgets: shares of the quantised original's cost.

    Returns:
        plans without repeats; where no plan keeps the bounds, the single cheapest one.
    """
    spread = minimise if minimise in COSTS else "latency"
    integer = _all_integer(space, sites)
    full = total(factors, integer, spread)
    found: dict[str, Candidate] = {}
    hard = {name: _MARGIN * bound for name, bound in bounds.items()}
    for k, budget in enumerate(budgets):
        progress("allocate", k, len(budgets))
        limits = {**hard, spread: min(hard.get(spread, float("inf")), budget * full * 1.0001)}
        point = allocate(sites, factors, limits, tie=spread)
        if point is None:
            break
        _add(found, space, sites, factors, point)
    progress("allocate", len(budgets), len(budgets))
    if not found:
        _add(found, space, sites, factors, _cheapest(sites, factors, spread))
    return tuple(found.values())


def bounds_of(goal: Goal, baseline: Mapping[str, float]) -> dict[str, float]:
    """The goal's bounds as upper bounds on costs, with the original's figures for ratios."""
    upper = {name: bound for name, bound in goal.at_most.items() if name in COSTS}
    for ratio, name in (("latency_ratio", "latency"), ("size_ratio", "size")):
        if ratio in goal.at_least:
            upper[name] = min(upper.get(name, float("inf")), baseline[name] / goal.at_least[ratio])
    return upper


def _add(
    found: dict[str, Candidate],
    space: Space,
    sites: Sequence[Site],
    factors: Sequence[Factor],
    point: Assignment,
) -> None:
    plan = space.plan(point)
    if any(c.plan == plan for c in found.values()):
        return
    loss = sum(s.loss[point[s.name]] for s in sites)
    loss += sum(float(f.loss[tuple(point[s] for s in f.sites)]) for f in factors if f.loss is not None)
    costs = {name: total(factors, point, name) for name in COSTS}
    name = f"plan-{len(found) + 1}"
    found[name] = Candidate(name, point, plan, costs, loss)


def _all_integer(space: Space, sites: Sequence[Site]) -> Assignment:
    chosen = {s.name: 0 for s in sites}
    for axis in space.axes:
        if "int8" in axis.choices:
            chosen[axis.name] = axis.choices.index("int8")
    return chosen


def _cheapest(sites: Sequence[Site], factors: Sequence[Factor], cost: str) -> Assignment:
    free = [Site(s.name, (0.0,) * len(s.loss)) for s in sites]
    costs = [Factor(f.sites, f.costs, loss=f.costs[cost]) for f in factors if cost in f.costs]
    point = allocate(free, costs, {}, tie=cost)
    return point if point is not None else {s.name: 0 for s in sites}
