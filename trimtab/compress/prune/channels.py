"""Prune: fewer channels, heads and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.compress.prune.allocation import ALLOCATES, Allocate, Wanted, best, counts, wanted, widths
from trimtab.compress.prune.before import Before, before_of
from trimtab.compress.prune.places import readings
from trimtab.compress.prune.rules import silent
from trimtab.compress.prune.schedule import SCHEDULES, Schedule, shares
from trimtab.compress.prune.scores import COMPARABLE, SCORES, ScoreName, unit_scores
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.technique import Technique
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.coupling import Group, groups
from trimtab.graph.model import Graph
from trimtab.graph.surgery import cut


@dataclass(frozen=True)
class Prune:
    """Remove the units (channels, heads, features, experts) that matter least from the coupled groups.

    Give `ratio` or `keep`. `resolve` turns a ratio into indices, and a schedule into its steps: what is cut
    in each round and the training behind it. A plan holds indices and step counts only.

    Args:
        ratio: share to remove, 0 to below 1: of each group's units, of all units, or of a cost, as `allocate` says.
        keep: for a group's name (`layer1.0.conv1.weight:0`), the indices of the units to keep.
        score: what tells which units matter; see `unit_scores`.
        multiple: kept widths are multiples of this many channels, which kernels are fast at; a group
            narrower than that stays whole.
        fixed: names of layers to leave whole beside the task's `keep`: exact, a prefix, or a pattern.
        allocate: `uniform`: the same share of each group; `global`: the units below one threshold, whichever
            their group; `macs` or `params`: the widths that keep the most score at `1 - ratio` of the network's
            multiply-accumulates or parameters, exactly, among at most 16 widths of each group (the largest sum of
            scores; the largest product of the weights' kept shares for `l1`, `l2` and `fpgm`, which have no unit).
        floor: share of each group's units that stays in any case, but for `uniform`.
        schedule: `once`; `iterative`: the same share of what is left in each round; `cubic` (Zhu & Gupta).
        rounds: of a schedule; scores are taken anew in each.
        train: settings of `Distil` to train with after each round, such as `{"steps": 200}`; None for none.
        before: settings of `Distil` to train with before the first cut, and a `rule`: `{"rule": "slimming",
            "strength": 1e-4, "steps": 500}` draws the scales of batch norms to zero (use it with
            `score="batch_norm"`); `{"rule": "soft", "every": 100, "steps": 500}` silences the least units again and
            again while they go on learning, and those silent at the end are cut.

    Raises:
        InputError: a setting is out of range, a group is unknown, nothing can be cut, or a ratio would empty a layer.

    Source: Li et al. (2017), Pruning Filters for Efficient ConvNets; coupled groups after Fang et al.
    (2023), DepGraph; Liu et al. (2017), Network Slimming; He et al. (2018), Soft Filter Pruning; Zhu & Gupta
    (2017), To Prune, or Not to Prune, eq. 1. The exact allocation is ours.
    """

    ratio: float | None = None
    keep: Mapping[str, Sequence[int]] | None = None
    score: ScoreName = "l2"
    multiple: int = 8
    fixed: tuple[str, ...] = ()
    allocate: Allocate = "uniform"
    floor: float = 0.1
    schedule: Schedule = "once"
    rounds: int = 1
    train: Mapping[str, Any] | None = None
    before: Mapping[str, Any] | None = None

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each group that can be cut: the number of units to keep."""
        self.check()
        return tuple(
            Axis(f"Prune:{g.name}", tuple(widths(g, self.multiple)), ordered=True)
            for g in self._groups(graph, context)
            if len(widths(g, self.multiple)) > 1
        )

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph without the units that are not kept, trained where the settings say so."""
        return self._steps(graph, context, True)[1]

    def resolve(self, graph: Graph, context: Context) -> Prune | tuple[Technique, ...]:
        """The same with `keep` in place of `ratio`: which units stay, by score; several steps where it trains.

        What a schedule trains is trained here, as the next round's scores need it; with a store it is not
        trained again when the steps are applied.

        Raises:
            InputError: as above, or the score needs data that the task does not have.
        """
        steps = self._steps(graph, context, False)[0]
        return steps[0] if len(steps) == 1 and isinstance(steps[0], Prune) else steps

    def check(self) -> Prune:
        """The technique itself, or InputError naming the setting that is wrong."""
        if (self.ratio is None) == (self.keep is None):
            raise InputError("Prune", got="both ratio and keep" if self.keep else "neither", expected="ratio or keep")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise InputError("Prune: ratio", got=self.ratio, expected="a share from 0 to below 1")
        for name, value, known in (
            ("score", self.score, SCORES),
            ("allocate", self.allocate, ALLOCATES),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in known:
                raise InputError(f"Prune: {name}", got=repr(value), expected=f"one of {', '.join(known)}")
        if self.multiple < 1:
            raise InputError("Prune: multiple", got=self.multiple, expected="1 or more")
        if not 0 <= self.floor <= 1:
            raise InputError("Prune: floor", got=self.floor, expected="a share from 0 to 1")
        self._check_rounds()
        return self

    def _check_rounds(self) -> None:
        several = self.schedule != "once"
        if self.rounds < 1 or several != (self.rounds > 1):
            expected = "2 or more" if several else "1: schedule is once"
            raise InputError("Prune: rounds", got=self.rounds, expected=expected)
        if several and self.keep is not None:
            raise InputError("Prune", got=f"keep and schedule={self.schedule!r}", expected="ratio, or one round")
        before = None if self.before is None else before_of(self.before)
        if several and before is not None and before.shaping.rule == "soft":
            raise InputError("Prune: before", got="rule soft and a schedule", expected="one of the two")
        if self.train is not None:
            made(Distil, self.train).recipe()

    def _steps(self, graph: Graph, context: Context, finish: bool) -> tuple[tuple[Technique, ...], Graph]:
        """The steps that the settings come to, and the network behind them (behind all of them if `finish`)."""
        self.check()
        want = None if self.keep is not None else self._wanted(graph, context)
        ratios = (0.0,) if want is None else shares(self.schedule, float(self.ratio or 0.0), self.rounds)
        steps: list[Technique] = []
        for i, ratio in enumerate(ratios):
            before = before_of(self.before) if self.before is not None and i == 0 else None
            made_ready = None if before is None else before.resolve(graph, context)
            step, graph = self._round(graph, context, ratio, want, made_ready)
            last = i == len(ratios) - 1
            if not step.keep and made_ready is None and (not last or steps):
                continue  # this round's widths round to what is there
            steps.append(step)
            if last and not finish and self.train is None:
                break
            graph = cut(graph, step.keep or {})
            if self.train is not None:
                training = made(Distil, self.train).resolve(graph, context)
                steps.append(training)
                graph = training.apply(graph, context) if finish or not last else graph
        self._refuse_nothing(steps, graph, context)
        return tuple(steps), graph

    def _round(
        self, graph: Graph, context: Context, ratio: float, want: Wanted | None, before: Before | None
    ) -> tuple[Prune, Graph]:
        """One round's cut, and the network that is cut: trained if there is a training before."""
        found = self._groups(graph, context)
        if want is None:
            self._refuse_fixed(graph, context)
            if before is not None:
                counts_of = {name: len(set(units)) for name, units in (self.keep or {}).items()}
                graph = before.trained(graph, found, counts_of, context)
            return self._only(self.keep or {}, before), graph
        soft = before is not None and before.shaping.rule == "soft"
        if before is not None and not soft:
            graph = before.trained(graph, found, {}, context)
        kept = self._counts(graph, context, found, ratio, want)
        chosen = [g for g in found if kept.get(g.name, g.size) < g.size]
        if before is not None and soft:
            graph = before.trained(graph, found, kept, context)
        scores = unit_scores(graph, chosen, self.score, context)
        if soft:
            scores = _silent_last(graph, chosen, scores)
        return self._only({g.name: best(scores[g.name], kept[g.name]) for g in chosen}, before), graph

    def _counts(
        self, graph: Graph, context: Context, found: Sequence[Group], ratio: float, want: Wanted
    ) -> dict[str, int]:
        """How many units each group that could be cut at first keeps in a round."""
        free = [g for g in found if g.name in want.sizes]
        scores = {} if self.allocate == "uniform" else unit_scores(graph, free, self.score, context, across=True)
        return counts(graph, free, scores, ratio, want)

    def _only(self, keep: Mapping[str, Sequence[int]], before: Before | None) -> Prune:
        """The decisions of a round and nothing else."""
        return Prune(keep=keep, fixed=self.fixed, before=None if before is None else before.settings())

    def _wanted(self, graph: Graph, context: Context) -> Wanted:
        free = [g for g in self._groups(graph, context) if len(widths(g, self.multiple)) > 1]
        return wanted(graph, free, self.allocate, self.multiple, self.floor, self.score in COMPARABLE)

    def _groups(self, graph: Graph, context: Context) -> list[Group]:
        return [g for g in groups(graph, (*context.task.keep, *self.fixed)) if g.reason is None]

    def _refuse_nothing(self, steps: Sequence[Technique], graph: Graph, context: Context) -> None:
        if self.ratio and not any(isinstance(s, Prune) and s.keep for s in steps):
            found = self._groups(graph, context)
            why = "no group can be cut" if not found else f"every width rounds to itself at multiple={self.multiple}"
            raise InputError("Prune: nothing to remove", got=why, do="Raise ratio or lower multiple.")

    def _refuse_fixed(self, graph: Graph, context: Context) -> None:
        known = {g.name: g for g in groups(graph, (*context.task.keep, *self.fixed))}
        for name, units in (self.keep or {}).items():
            group = known.get(name)
            if group is not None and group.reason is not None and len(set(units)) < group.size:
                raise InputError("Prune", where=name, got=f"keep={len(set(units))} units", expected=group.reason)


def _silent_last(graph: Graph, found: Sequence[Group], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with those of units that soft pruning has silenced below all others."""
    read, tensors = readings(graph, found), graph.tensors()
    result = dict(scores)
    for group in found:
        if read[group.name]:
            gone = silent(tensors, [r.member for r in read[group.name]])
            result[group.name] = torch.where(gone, -1.0, scores[group.name])
    return result
