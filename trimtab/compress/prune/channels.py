"""Prune: fewer channels, heads and features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from trimtab.compress.prune.scores import SCORES, ScoreName, unit_scores
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.coupling import Group, groups
from trimtab.graph.model import Graph
from trimtab.graph.surgery import cut


@dataclass(frozen=True)
class Prune:
    """Remove the units (channels, heads, features) that matter least from every coupled group.

    Give `ratio` or `keep`. `resolve` turns a ratio into indices, and a plan holds indices only.

    Args:
        ratio: share of each group's units to remove, 0 to below 1, after rounding to `multiple`.
        keep: for a group's name (`layer1.0.conv1.weight:0`), the indices of the units to keep.
        score: `l1`, `l2`, `taylor`, `eq9`, `batch_norm` or `random`; see `unit_scores`.
        multiple: kept widths are multiples of this many channels, which kernels are fast at; a group
            narrower than that stays whole.
        fixed: names of layers to leave whole beside the task's `keep`: exact, a prefix, or a pattern.

    Raises:
        InputError: a setting is out of range, a group is unknown, or nothing can be cut.

    Source: Li et al. (2017), Pruning Filters for Efficient ConvNets; coupled groups after Fang et al.
    (2023), DepGraph.
    """

    ratio: float | None = None
    keep: Mapping[str, Sequence[int]] | None = None
    score: ScoreName = "l2"
    multiple: int = 8
    fixed: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each group that can be cut: the number of units to keep."""
        self.check()
        return tuple(
            Axis(f"Prune:{g.name}", tuple(widths(g, self.multiple)), ordered=True)
            for g in self._groups(graph, context)
            if len(widths(g, self.multiple)) > 1
        )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph without the units that are not kept."""
        keep = self.resolve(graph, context).keep
        return cut(graph, keep or {})

    def resolve(self, graph: Graph, context: Context) -> Prune:
        """The same with `keep` in place of `ratio`: which units stay, by score.

        Raises:
            InputError: as above, or the score needs data that the task does not have.
        """
        self.check()
        found = self._groups(graph, context)
        if self.keep is not None:
            self._refuse_fixed(graph, context)
            return self
        counts = {g.name: kept_units(g, float(self.ratio or 0.0), self.multiple) for g in found}
        chosen = [g for g in found if counts[g.name] < g.size]
        if not chosen and self.ratio:
            why = "no group can be cut" if not found else f"every width rounds to itself at multiple={self.multiple}"
            raise InputError("Prune: nothing to remove", got=why, do="Raise ratio or lower multiple.")
        keep = choose(graph, chosen, counts, self.score, context)
        return replace(self, ratio=None, keep=keep)

    def check(self) -> Prune:
        """The technique itself, or InputError naming the setting that is wrong."""
        if (self.ratio is None) == (self.keep is None):
            raise InputError("Prune", got="both ratio and keep" if self.keep else "neither", expected="ratio or keep")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise InputError("Prune: ratio", got=self.ratio, expected="a share from 0 to below 1")
        if self.score not in SCORES:
            raise InputError("Prune: score", got=repr(self.score), expected=f"one of {', '.join(SCORES)}")
        if self.multiple < 1:
            raise InputError("Prune: multiple", got=self.multiple, expected="1 or more")
        return self

    def _groups(self, graph: Graph, context: Context) -> list[Group]:
        return [g for g in groups(graph, (*context.task.keep, *self.fixed)) if g.reason is None]

    def _refuse_fixed(self, graph: Graph, context: Context) -> None:
        known = {g.name: g for g in groups(graph, (*context.task.keep, *self.fixed))}
        for name, units in (self.keep or {}).items():
            group = known.get(name)
            if group is not None and group.reason is not None and len(set(units)) < group.size:
                raise InputError("Prune", where=name, got=f"keep={len(set(units))} units", expected=group.reason)


def choose(
    graph: Graph, chosen: Sequence[Group], counts: Mapping[str, int], score: ScoreName, context: Context
) -> dict[str, list[int]]:
    """For each group, the indices of the `counts[name]` units with the highest scores, in order.

    Equal scores: the lower index stays.
    """
    scores = unit_scores(graph, chosen, score, context)
    return {
        g.name: sorted(torch.sort(scores[g.name], descending=True, stable=True).indices[: counts[g.name]].tolist())
        for g in chosen
    }


def step(group: Group, multiple: int) -> int:
    """How many units make a multiple of `multiple` channels; one unit may be a run of channels (a head)."""
    channels = max(len(unit) for unit in group.members[0].indices)
    return multiple // math.gcd(multiple, channels)


def widths(group: Group, multiple: int) -> list[int]:
    """The numbers of units that may be kept: multiples of `step`, and all."""
    by = step(group, multiple)
    return [*range(by, group.size, by), group.size]


def kept_units(group: Group, ratio: float, multiple: int) -> int:
    """(1 - ratio) size, rounded to the nearest of `widths`; the larger of two that are equally near."""
    wanted = (1 - ratio) * group.size
    return min(widths(group, multiple), key=lambda n: (abs(n - wanted), -n))
