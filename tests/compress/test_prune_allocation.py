"""Allocation: the model of cost is exact, the integer programme as good as trying everything, the threshold one."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.small_networks import captured
from trimtab.compress import Prune
from trimtab.compress.allocate import total as cost_of
from trimtab.compress.plan import apply_plan, step_of
from trimtab.compress.prune.allocation import counts, wanted
from trimtab.compress.prune.cost import cost_factors
from trimtab.compress.prune.scores import unit_scores
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.count import total
from trimtab.graph.coupling import groups
from trimtab.graph.model import Graph
from trimtab.graph.surgery import cut


class Joined(nn.Module):
    """Two convolutions of which the second reads the first, one that reads both, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        y = self.c(torch.cat([a, self.b(a).relu()], 1)).relu()
        return self.linear(self.d(y).mean((2, 3)))


@pytest.fixture(scope="module")
def joined() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Joined().eval(), torch.randn(2, 2, 6, 6)
    return capture(model, x), Context(Task(model, x))


NETWORKS = ("dense", "mobile", "grouped", "u_net", "transposed", "merged_attention", "decoder", "lstm", "einsum")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_the_cost_is_that_of_the_cut_network(name: str, cost: Any) -> None:
    graph, _ = captured(name)
    free = [g for g in groups(graph) if g.reason is None and g.size > 1]
    source = random.Random(0)
    choices = {
        g.name: [range(g.size), *(sorted(source.sample(range(g.size), g.size // 2 or 1)) for _ in "ab")] for g in free
    }
    whole, factors = cost_factors(graph, free, choices, cost)
    assert whole == _counted(graph, cost)
    for _ in range(2):
        chosen = {g.name: source.randrange(3) for g in free}
        smaller = cut(graph, {name: choices[name][c] for name, c in chosen.items()})
        assert whole + cost_of(factors, chosen, cost) == _counted(smaller, cost)


def _some(size: int, source: random.Random) -> list[int]:
    return sorted(source.sample(range(size), size // 2))


def _counted(graph: Graph, cost: str) -> int:
    found = total(graph, 1)
    return found.macs if cost == "macs" else found.parameters


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("score", ["lamp", "l2"])
def test_the_programme_is_exact(joined: tuple[Graph, Context], cost: Any, ratio: float, score: Any) -> None:
    graph, context = joined
    free = [g for g in groups(graph) if g.reason is None]
    assert [g.size for g in free] == [4, 4, 4]
    scores = unit_scores(graph, free, score, context, across=True)
    orders = {name: torch.sort(s, descending=True).indices.tolist() for name, s in scores.items()}
    keeps = {name: [order[:n] for n in (4, 3, 2, 1)] for name, order in orders.items()}

    def value(kept: dict[str, int]) -> float:
        """The sum of the scores kept; of l2, which has no unit, the product of the shares kept of each weight."""
        sums = {name: float(scores[name][orders[name][:n]].sum()) for name, n in kept.items()}
        weights = {"a.weight:0": 3, "b.weight:0": 2, "c.weight:0": 3}  # a, b, c; b, c; c, d, linear
        shares = [(each / float(scores[name].sum())) ** weights[name] for name, each in sums.items()]
        return math.prod(shares) if score == "l2" else sum(sums.values())

    whole, factors = cost_factors(graph, free, keeps, cost)
    best = max(
        value({name: 4 - c for name, c in chosen.items()})
        for picked in itertools.product(range(4), repeat=3)
        if whole + cost_of(factors, chosen := dict(zip(keeps, picked, strict=True)), cost) <= (1 - ratio) * whole
    )
    found = counts(graph, free, scores, ratio, wanted(graph, free, cost, 1, 0.0, score == "lamp"))
    assert value(found) == pytest.approx(best, rel=1e-9)
    smaller = Prune(ratio=ratio, score=score, allocate=cost, multiple=1, floor=0.0).apply(graph, context)
    assert _counted(smaller, cost) <= (1 - ratio) * _counted(graph, cost)


def test_one_threshold_over_all_groups(joined: tuple[Graph, Context]) -> None:
    graph = joined[0]
    free = [g for g in groups(graph) if g.reason is None]
    scores = dict(zip((g.name for g in free), (torch.tensor(v, dtype=torch.float64) for v in (
        [9.0, 8.0, 7.0, 6.0], [0.1, 0.2, 5.0, 0.3], [0.4, 4.0, 0.5, 3.0])), strict=True))  # fmt: skip

    def kept(ratio: float, floor: float = 0.0, multiple: int = 1) -> list[int]:
        return list(counts(graph, free, scores, ratio, wanted(graph, free, "global", multiple, floor, True)).values())

    assert kept(5 / 12) == [4, 1, 2]
    assert kept(0.0) == [4, 4, 4]
    assert kept(8 / 12) == [2, 1, 1]
    assert kept(6 / 12, floor=0.5) == [2, 2, 2]
    assert kept(5 / 12, multiple=2) == [4, 2, 2]  # rounded: 1 to 2
    with pytest.raises(InputError, match=r"got 0\.6 of the units, expected at most 0\.5: no layer may be emptied"):
        kept(0.6, floor=0.5)


def test_a_global_threshold_of_slimming_is_on_the_scales_themselves() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    ).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, 0.6, 0.7, 0.8]))
        model[4].weight.copy_(torch.tensor([0.01, 0.9, -0.03, 0.02]))
    x = torch.randn(2, 1, 3, 3)
    technique = Prune(ratio=3 / 8, score="batch_norm", allocate="global", multiple=1)
    found = technique.resolve(capture(model, x), Context(Task(model, x)))
    assert isinstance(found, Prune)
    assert found.keep == {"3.weight:0": [1]}


def test_a_plan_holds_indices_only(joined: tuple[Graph, Context]) -> None:
    graph, context = joined
    technique = Prune(ratio=0.5, allocate="macs", score="lamp", multiple=1, floor=0.25)
    found = technique.resolve(graph, context)
    assert isinstance(found, Prune)
    step = step_of(found)
    assert step.keys() == {"technique", "keep"}
    replayed, applied = apply_plan(graph, Plan((step,)), context), technique.apply(graph, context)
    assert all(torch.equal(a, b) for a, b in zip(replayed.tensors().values(), applied.tensors().values(), strict=True))


def test_widths_of_wide_layers_are_thinned() -> None:
    model = nn.Sequential(nn.Linear(3, 100), nn.ReLU(), nn.Linear(100, 2)).eval()
    x = torch.randn(2, 3)
    graph, context = capture(model, x), Context(Task(model, x))
    found = Prune(ratio=0.5, allocate="params", multiple=1, floor=0.0).resolve(graph, context)
    assert isinstance(found, Prune)
    kept = {name: len(units) for name, units in (found.keep or {}).items()}
    ladder = [round(i * 99 / 15) + 1 for i in range(16)]  # of 1 to 100
    # 6 n + 2 parameters at n hidden units of 602: half is n <= 49.8
    assert kept == {"0.weight:0": max(n for n in ladder if 6 * n + 2 <= 301)}


@pytest.mark.parametrize("allocate", ["uniform", "global", "macs", "params"])
def test_where_no_group_has_two_widths_nothing_is_removed(allocate: Any) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)
    graph, context = capture(model, x), Context(Task(model, x))
    found = Prune(ratio=0.0, allocate=allocate, multiple=8).resolve(graph, context)
    assert isinstance(found, Prune)
    assert found.keep == {}
    with pytest.raises(InputError, match="nothing to remove: got every width rounds to itself at multiple=8"):
        Prune(ratio=0.5, allocate=allocate, multiple=8).resolve(graph, context)
    # groups of one unit, which a schedule has cut to that: they are none any more
    want = wanted(graph, [g for g in groups(graph) if g.reason is None], allocate, 1, 0.0, True)
    assert counts(graph, [], {}, 0.0, want) == {}
