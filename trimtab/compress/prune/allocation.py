"""Allocation: how many units each group keeps, all groups alike, by one threshold, or exactly to a cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from trimtab.compress.allocate import Site, allocate, total
from trimtab.compress.prune.cost import CostName, cost_factors
from trimtab.core.errors import InputError
from trimtab.graph.coupling import Group
from trimtab.graph.model import Graph

Allocate = Literal["uniform", "global", "macs", "params"]
ALLOCATES: tuple[str, ...] = get_args(Allocate)
WIDTHS = 16
"""Widths of each group that an exact allocation weighs, evenly spread: those of two layers are weighed in pairs."""
_SECONDS = 60.0
_TINY = 1e-30
_TOLERANCE = 2e-6
"""By which the solver may miss a bound of about 1."""


@dataclass(frozen=True)
class Wanted:
    """What is to be left, counted in the network that a schedule began with.

    Args:
        how: the allocation.
        sizes: for each group's name its units then.
        cost: the network's cost then; its units where `how` is `global`.
        multiple: kept widths are multiples of this many channels.
        floor: share of each group's units that stays, but for `uniform`.
        comparable: scores of different groups are in one currency.
    """

    how: Allocate
    sizes: Mapping[str, int]
    cost: float
    multiple: int
    floor: float
    comparable: bool


def wanted(
    graph: Graph, groups: Sequence[Group], how: Allocate, multiple: int, floor: float, comparable: bool
) -> Wanted:
    """The measure that ratios are shares of, from the network before the first cut."""
    sizes = {g.name: g.size for g in groups}
    cost = float(sum(sizes.values()))
    if how in ("macs", "params"):
        cost, _ = cost_factors(graph, groups, {g.name: [range(g.size)] for g in groups}, how)
    return Wanted(how, sizes, cost, multiple, floor, comparable)


def counts(
    graph: Graph, groups: Sequence[Group], scores: Mapping[str, Tensor], ratio: float, want: Wanted
) -> dict[str, int]:
    """How many units each group keeps so that `1 - ratio` of what `want` counts is left.

    Args:
        graph: as it is now.
        groups: of it.
        scores: of their units; comparable between groups but for `uniform`.
        ratio: share to be gone, of the network that the schedule began with.
        want: of that network.

    Raises:
        InputError: the ratio would empty a layer, or cannot be reached.
    """
    if not want.sizes:
        return {}  # no group had two widths: nothing can go, whatever the ratio
    if want.how == "uniform":
        return {g.name: _uniform(g, ratio, want) for g in groups}
    if want.how == "global":
        return _global(groups, scores, ratio, want)
    return _exact(graph, groups, scores, ratio, want, want.how)


def _uniform(group: Group, ratio: float, want: Wanted) -> int:
    size = want.sizes.get(group.name, group.size)
    choices = widths(group, want.multiple)
    if len(choices) > 1 and (1 - ratio) * size < 0.5:
        raise InputError(
            "Prune: ratio",
            where=group.name,
            got=f"{ratio:g}, which leaves none of {size} units",
            expected=f"at most {1 - 1 / size:.4g}",
            do="Lower ratio, or name the layer in fixed=.",
        )
    return nearest(choices, (1 - ratio) * size)


def _global(groups: Sequence[Group], scores: Mapping[str, Tensor], ratio: float, want: Wanted) -> dict[str, int]:
    """One threshold over all units: those below it go, rounded to each group's nearest width, none below the floor."""
    choices = {g.name: _above(g, want) for g in groups}
    single = len(want.sizes) - len(choices)  # groups with one unit left are none any more
    least, target = sum(c[0] for c in choices.values()), (1 - ratio) * want.cost - single
    if least > target + 0.5:
        _refuse(ratio, 1 - (least + single) / want.cost, want)
    if not groups:
        return {}
    ordered = {name: np.sort(scores[name].numpy()) for name in choices}

    def left(threshold: float) -> dict[str, int]:
        found = {n: len(values) - int(np.searchsorted(values, threshold, "right")) for n, values in ordered.items()}
        return {name: nearest(choices[name], count) for name, count in found.items()}

    thresholds = [-np.inf, *np.unique(np.concatenate(list(ordered.values()))).tolist()]
    low, high = 0, len(thresholds) - 1  # of the least threshold that leaves no more than the target
    while low < high:
        middle = (low + high) // 2
        if sum(left(thresholds[middle]).values()) <= target:
            high = middle
        else:
            low = middle + 1
    near = [left(thresholds[i]) for i in (low - 1, low) if i >= 0]
    # of two that are equally near the one that keeps more, whatever the ratio rounds to
    return min(near, key=lambda found: (round(abs(sum(found.values()) - target), 6), -sum(found.values())))


def _exact(
    graph: Graph,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    ratio: float,
    want: Wanted,
    cost: CostName,
) -> dict[str, int]:
    """The widths that keep the most score at no more than a share of the original's cost, by integer programme.

    The most is the largest sum of the scores kept; where those of different groups are not comparable, the
    largest product of the kept shares over all weights that the groups reach: no layer pays for all others, and
    a residual stream, which many layers write and read, counts as often. Of what is found in a minute, where no
    solution is proved the best by then.
    """
    choices = {g.name: _spread(_above(g, want))[::-1] for g in groups}
    keeps = {name: [best(scores[name], n) for n in each] for name, each in choices.items()}
    whole, factors = cost_factors(graph, groups, keeps, cost)
    bound = (1 - ratio) * want.cost
    scaled = [type(f)(f.sites, {cost: f.costs[cost] / want.cost}) for f in factors]
    everything = max(sum(float(scores[g.name].sum()) for g in groups), _TINY)
    parameters = dict(graph.net.named_parameters())
    sites = []
    for group in groups:
        weights = sum(m.parameter in parameters and parameters[m.parameter].ndim > 1 for m in group.members)
        scale = 1 / everything if want.comparable else float(weights)
        lost = (_lost(scores[group.name], n, want.comparable) for n in choices[group.name])
        sites.append(Site(group.name, tuple(scale * each for each in lost)))
    least = {name: len(each) - 1 for name, each in choices.items()}
    if whole + total(factors, least, cost) > bound:
        _refuse(ratio, 1 - (whole + total(factors, least, cost)) / want.cost, want)
    if not groups:
        return {}
    for slack in (0.0, _TOLERANCE, 10 * _TOLERANCE):
        limit: dict[str, float] = {cost: (bound - whole) / want.cost - slack}
        found = allocate(sites, scaled, limit, seconds=_SECONDS, tie="", gap=0.0)
        if found is not None and whole + total(factors, found, cost) <= bound:
            return {name: choices[name][choice] for name, choice in found.items()}
    raise InputError(
        "Prune: allocate",
        got=f"no widths to a share of {cost} found in {_SECONDS:g} s",
        do="Raise multiple, or use allocate='global'.",
    )


def _lost(scores: Tensor, count: int, comparable: bool) -> float:
    """What is lost with all but the best units of a group: the sum of their scores, or minus the log of what stays."""
    ordered = torch.sort(scores).values
    gone = float(ordered[: len(scores) - count].sum())
    return gone if comparable else -math.log(max(1 - gone / max(float(ordered.sum()), _TINY), _TINY))


def best(scores: Tensor, count: int) -> list[int]:
    """The indices of the units with the highest scores, in order. Equal scores: the lower index stays."""
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


def _refuse(ratio: float, most: float, want: Wanted) -> None:
    what = {"global": "units", "macs": "multiply-accumulates", "params": "parameters"}[want.how]
    raise InputError(
        "Prune: ratio",
        got=f"{ratio:g} of the {what}",
        expected=f"at most {math.floor(1000 * most) / 1000:g}: no layer may be emptied",
        do=f"Lower ratio, or floor, which is {want.floor:g}.",
    )


def _above(group: Group, want: Wanted) -> list[int]:
    """The widths that are no less than the floor."""
    least = want.floor * want.sizes.get(group.name, group.size)
    found = widths(group, want.multiple)
    return [n for n in found if n >= least] or found[-1:]


def _spread(choices: Sequence[int]) -> list[int]:
    """At most `WIDTHS` of some widths, the first and the last among them."""
    if len(choices) <= WIDTHS:
        return list(choices)
    return [choices[round(i * (len(choices) - 1) / (WIDTHS - 1))] for i in range(WIDTHS)]


def step(group: Group, multiple: int) -> int:
    """How many units make a multiple of `multiple` channels; one unit may be a run of channels (a head)."""
    channels = max(len(unit) for unit in group.members[0].indices)
    return multiple // math.gcd(multiple, channels)


def widths(group: Group, multiple: int) -> list[int]:
    """The numbers of units that may be kept: multiples of `step`, and all."""
    by = step(group, multiple)
    return [*range(by, group.size, by), group.size]


def nearest(choices: Sequence[int], count: float) -> int:
    """The nearest of some widths; the larger of two that are equally near."""
    return min(choices, key=lambda n: (abs(n - count), -n))
