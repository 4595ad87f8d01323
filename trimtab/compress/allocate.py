"""Allocate: the settings of all sites together, exactly, under the goal. Integer programme by HiGHS."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from trimtab.run.runtime import Array

Assignment = dict[str, int]
"""The choice of each site, by site name."""


@dataclass(frozen=True)
class Site:
    """One place where something can be chosen.

    Args:
        name: of the site.
        loss: what each choice adds to the loss; the first choice is the network as it is.
    """

    name: str
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Factor:
    """What the choices of several sites cost together, such as a layer between two widths.

    Args:
        sites: the names of the sites that it depends on.
        costs: for each cost (`latency`, `size`, ...) an array with one axis for each of `sites`.
        loss: an array of the same shape, for losses that depend on several sites; None for none.
    """

    sites: tuple[str, ...]
    costs: Mapping[str, Array] = field(default_factory=dict)
    loss: Array | None = None


def allocate(
    sites: Sequence[Site],
    factors: Sequence[Factor],
    at_most: Mapping[str, float],
    *,
    seconds: float = 20.0,
    tie: str = "latency",
    gap: float = 1e-3,
) -> Assignment | None:
    """The choices of least loss whose costs keep the bounds, or None if none do.

    minimise sum_s loss[s, x_s] + sum_f loss[f, x_f]  subject to  sum_f cost_k[f, x_f] <= bound_k

    with one binary for each choice, and for each factor one continuous variable for each
    combination of its sites' choices, whose margins are those binaries: for binary choices the
    combination is then exact (the local polytope of a factor graph).

    Args:
        sites: the sites; names are unique.
        factors: the costs.
        at_most: bounds on the sums of costs, by cost name.
        seconds: limit for the solver, which then gives the best found.
        tie: the cost that decides, by a weight of 1e-4 of the loss, between equal losses.
        gap: share of the loss by which the result may be off the least; 0 is exact.
    """
    programme = _Programme(sites, factors)
    objective = programme.losses()
    tied = programme.costs(tie)
    scale = tied.sum()
    if scale > 0:
        objective = objective + tied / scale * (1e-4 * max(float(np.abs(objective).max()), 1e-9))
    rows = [programme.equalities()]
    rows += [LinearConstraint(programme.costs(name)[None, :], -np.inf, bound) for name, bound in at_most.items()]
    result = milp(
        objective,
        integrality=programme.integrality,
        bounds=Bounds(0, 1),
        constraints=rows,
        options={"time_limit": seconds, "mip_rel_gap": gap},
    )
    return None if result.x is None else programme.read(result.x)


def total(factors: Sequence[Factor], chosen: Assignment, cost: str) -> float:
    """The sum of one cost over all factors at an assignment."""
    return float(sum(f.costs[cost][tuple(chosen[s] for s in f.sites)] for f in factors if cost in f.costs))


class _Programme:
    """Variables of the integer programme: all choices of all sites, then all combinations of all factors."""

    def __init__(self, sites: Sequence[Site], factors: Sequence[Factor]) -> None:
        self.sites, self.factors = sites, factors
        self.first: dict[str, int] = {}
        n = 0
        for site in sites:
            self.first[site.name] = n
            n += len(site.loss)
        self.choices = n
        self.shapes = [tuple(len(self._site(s).loss) for s in f.sites) for f in factors]
        self.starts: list[int] = []
        for shape in self.shapes:
            self.starts.append(n)
            n += int(np.prod(shape))
        self.size = n
        self.integrality = np.r_[np.ones(self.choices), np.zeros(n - self.choices)]

    def _site(self, name: str) -> Site:
        return next(s for s in self.sites if s.name == name)

    def losses(self) -> Array:
        out = np.zeros(self.size)
        for site in self.sites:
            out[self.first[site.name] :][: len(site.loss)] = site.loss
        for start, factor in zip(self.starts, self.factors, strict=True):
            if factor.loss is not None:
                out[start : start + factor.loss.size] = factor.loss.ravel()
        return out

    def costs(self, name: str) -> Array:
        out = np.zeros(self.size)
        for start, factor in zip(self.starts, self.factors, strict=True):
            if name in factor.costs:
                out[start : start + factor.costs[name].size] = factor.costs[name].ravel()
        return out

    def equalities(self) -> LinearConstraint:
        """One choice for each site; the margins of each factor are its sites' choices."""
        entries: list[tuple[int, int, float]] = []
        bounds: list[float] = []
        for site in self.sites:
            entries += [(len(bounds), self.first[site.name] + c, 1.0) for c in range(len(site.loss))]
            bounds.append(1.0)
        for start, shape, factor in zip(self.starts, self.shapes, self.factors, strict=True):
            row = len(bounds)
            offset = [row + sum(shape[:axis]) for axis in range(len(shape))]
            for k, combination in enumerate(itertools.product(*map(range, shape))):
                entries += [(offset[axis] + c, start + k, 1.0) for axis, c in enumerate(combination)]
            for axis, name in enumerate(factor.sites):
                entries += [(offset[axis] + c, self.first[name] + c, -1.0) for c in range(shape[axis])]
            bounds += [0.0] * sum(shape)
        rows, columns, values = zip(*entries, strict=True)
        matrix = coo_array((values, (rows, columns)), shape=(len(bounds), self.size)).tocsr()
        return LinearConstraint(matrix, bounds, bounds)

    def read(self, x: Array) -> Assignment:
        return {s.name: int(np.argmax(x[self.first[s.name] :][: len(s.loss)])) for s in self.sites}
