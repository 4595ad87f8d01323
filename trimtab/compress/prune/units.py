"""Units: from the elements of a tensor to the units of a group that they go with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.graph.coupling import Coupling, Group, Member
from trimtab.graph.rules.ties import Labels


def per_unit(elements: Tensor, member: Member) -> Tensor:
    """Sum of the elements that go with each unit: [size]."""
    others = [d for d in range(elements.ndim) if d != member.dim]
    along = elements.sum(others) if others else elements  # [length of the dimension]
    flat, unit = spread(member)
    return torch.zeros(len(member.indices), dtype=torch.float64).index_add(0, unit, along.double().cpu()[flat])


def spread(member: Member) -> tuple[Tensor, Tensor]:
    """The indices that a group has in a dimension, and for each the unit that it goes with."""
    counts = torch.tensor([len(i) for i in member.indices])
    flat = torch.tensor([i for unit in member.indices for i in unit], dtype=torch.int64)
    return flat, torch.repeat_interleave(torch.arange(len(counts)), counts)


def rows_of(weight: Tensor, member: Member) -> Tensor:
    """A weight's elements with one row for each unit, [size, elements], zeros where a unit has fewer."""
    slices = weight.detach().double().movedim(member.dim, 0).flatten(1)  # [length, others]
    flat, unit = spread(member)
    counts = [len(i) for i in member.indices]
    place = torch.cat([torch.arange(n) for n in counts])
    found = torch.zeros(len(counts), max(counts), slices.shape[1], dtype=torch.float64)
    found[unit, place] = slices.cpu()[flat]
    return found.flatten(1)


@dataclass(frozen=True)
class Numbers:
    """Which unit of which group each label of a coupling stands for.

    Args:
        coupling: of a graph.
        group: for each label that stands for others, the index of its group among `names`; -1 for none.
        unit: and its unit there.
        names: of the groups.
    """

    coupling: Coupling
    group: Labels
    unit: Labels
    names: tuple[str, ...]

    def of(self, labels: Labels) -> tuple[Labels, Labels]:
        """For each index of a dimension, its group's index (or -1) and its unit."""
        roots = self.coupling.ties.find(labels)
        return self.group[roots], self.unit[roots]


def numbers(coupling: Coupling, groups: tuple[Group, ...]) -> Numbers:
    """The numbers of the units of some groups of a coupling."""
    count = len(coupling.ties)
    group, unit = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for index, each in enumerate(groups):
        labels = coupling.units[each.name]
        group[labels], unit[labels] = index, np.arange(len(labels))
    return Numbers(coupling, group, unit, tuple(g.name for g in groups))
