"""Prune and RemoveBlocks: scores worked out by hand, rounding, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compress.networks import Residual, image_batch
from trimtab.compress import Prune, RemoveBlocks
from trimtab.compress.prune.allocation import nearest, widths
from trimtab.compress.prune.blocks import block_scores
from trimtab.compress.prune.gradients import gradients
from trimtab.compress.prune.scores import SCORES, unit_scores
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.blocks import blocks
from trimtab.graph.capture import capture
from trimtab.graph.coupling import Group, Member, groups
from trimtab.graph.model import Graph


class Two(nn.Module):
    """Two linear layers with weights that can be added up by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -1.0], [3.0, 4.0], [0.0, 1.0]]))
            self.second.weight.copy_(torch.tensor([[2.0, 1.0, -3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


NAME = "first.weight:0"


def two(**task: Any) -> tuple[Graph, Context]:
    model = Two()
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    return capture(model, x), Context(Task(model, x, **task))


def scored(score: Any, graph: Graph, context: Context) -> list[float]:
    found = [g for g in groups(graph) if g.name == NAME]
    return unit_scores(graph, found, score, context)[NAME].tolist()


def test_magnitudes_by_hand() -> None:
    graph, context = two()
    # l1: rows of first [2, 7, 1] over their mean 10/3, columns of second [2, 1, 3] over 2; then the mean of both
    assert scored("l1", graph, context) == pytest.approx([(0.6 + 1.0) / 2, (2.1 + 0.5) / 2, (0.3 + 1.5) / 2])
    rows = [2**0.5, 5.0, 1.0]
    mean = sum(rows) / 3
    wanted = [(r / mean + c / 2) / 2 for r, c in zip(rows, [2, 1, 3], strict=True)]
    assert scored("l2", graph, context) == pytest.approx(wanted)


def test_gradient_scores_by_hand() -> None:
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.sum() * 0.5

    graph, context = two(loss=loss, train=[(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2))])
    # the gradient of first is second^T (sum of x) / 2 = [2, 1, -3]^T [1, 2] / 2; w g by row:
    # [1, -2], [1.5, 4], [0, -3]; of second first (sum of x) / 2 = [-0.5, 5.5, 1]; w g: [-1, 5.5, -3]
    second = [v / (9.5 / 3) for v in (1.0, 5.5, 3.0)]
    taylor = [v / (9.5 / 3) for v in (1.0, 5.5, 3.0)]
    assert scored("taylor", graph, context) == pytest.approx([(a + b) / 2 for a, b in zip(taylor, second, strict=True)])
    eq9 = [v / (11.5 / 3) for v in (3.0, 5.5, 3.0)]
    assert scored("eq9", graph, context) == pytest.approx([(a + b) / 2 for a, b in zip(eq9, second, strict=True)])


def test_taylor_is_the_mean_of_absolute_values_over_batches() -> None:
    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs * target).sum()

    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    opposite = [(x, torch.ones(2, 1)), (x, -torch.ones(2, 1))]
    graph, context = two(loss=loss, train=opposite)
    assert min(scored("taylor", graph, context)) > 0.1
    assert len(list(gradients(graph, context, "taylor"))) == 2


def test_batch_norm_scales() -> None:
    torch.manual_seed(0)
    model = Residual()
    graph = capture(model, image_batch())
    context = Context(Task(model, image_batch()))
    found = [g for g in groups(graph) if g.reason is None]
    values = unit_scores(graph, found, "batch_norm", context)[found[0].name]
    wanted = [bn.weight.detach().double() for bn in (model.bn1, model.bn2)]
    assert torch.allclose(values, sum(w / w.mean() for w in wanted) / 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without a batch norm"):
        scored("batch_norm", *two())


def test_random_depends_on_the_seed_alone() -> None:
    graph, context = two()
    first, again = scored("random", graph, context), scored("random", graph, context)
    assert first == again
    assert first != scored("random", graph, Context(context.task, seed=1))


@pytest.mark.parametrize("score", ["taylor", "eq9"])
def test_scores_from_data_say_what_is_missing(score: str) -> None:
    graph, context = two()
    with pytest.raises(InputError, match=f"score {score} needs a loss"):
        scored(score, graph, context)
    graph, context = two(loss=nn.functional.mse_loss)
    with pytest.raises(InputError, match=f"score {score} needs labelled data"):
        scored(score, graph, context)
    graph, context = two(loss=nn.functional.mse_loss, train=[(image_batch()[:, 0, 0, :2],)])
    with pytest.raises(InputError, match="no labels"):
        scored(score, graph, context)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_prunes(score: Any) -> None:
    torch.manual_seed(0)
    model = Residual(16).eval()
    train = Arrays(image_batch(32), torch.arange(32) % 5, batch=16)
    graph = capture(model, image_batch())
    context = Context(Task(model, image_batch(), train=train, loss=nn.functional.cross_entropy))
    technique = Prune(ratio=0.5, score=score)
    resolved = technique.resolve(graph, context)
    assert resolved.ratio is None
    assert all(len(units) == 8 for units in (resolved.keep or {}).values())
    assert technique.apply(graph, context).tensors()["conv1.weight"].shape == (8, 3, 3, 3)


def test_the_largest_stay_in_order() -> None:
    graph, context = two()
    assert Prune(ratio=0.34, score="l1", multiple=1).resolve(graph, context).keep == {NAME: [1, 2]}
    cut = Prune(keep={NAME: [1]}).apply(graph, context)
    assert torch.equal(cut.tensors()["first.weight"], torch.tensor([[3.0, 4.0]]))
    assert torch.equal(cut.tensors()["second.weight"], torch.tensor([[1.0]]))


def group(size: int, run: int = 1) -> Group:
    indices = tuple(tuple(range(i * run, (i + 1) * run)) for i in range(size))
    return Group("g", size, (Member("w", 0, indices),))


def test_widths_are_multiples_of_channels_and_never_zero() -> None:
    assert widths(group(20), 8) == [8, 16, 20]
    assert widths(group(6), 8) == [6]
    assert widths(group(12, run=64), 8) == list(range(1, 13))
    assert widths(group(12, run=4), 8) == [2, 4, 6, 8, 10, 12]
    assert nearest(widths(group(64), 8), 32) == 32
    assert nearest(widths(group(64), 8), 0.64) == 8
    assert nearest(widths(group(64), 8), 36) == 40
    assert nearest(widths(group(16), 8), 12) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "got neither"),
        ({"ratio": 0.5, "keep": {NAME: (0,)}}, "got both"),
        ({"ratio": 1.0}, "ratio: got 1.0"),
        ({"ratio": -0.1}, "ratio: got -0.1"),
        (
            {"ratio": 0.9, "multiple": 1},
            "got 0.9, which leaves none of 3 units, expected at most 0.6667",
        ),
        ({"ratio": 0.9, "multiple": 1, "allocate": "global"}, "got 0.9 of the units, expected at most 0.666"),
        (
            {"ratio": 0.9, "multiple": 1, "allocate": "macs"},
            "got 0.9 of the multiply-acc.*, expected at most 0.666",
        ),
        ({"ratio": 0.9, "multiple": 1, "allocate": "params"}, "got 0.9 of the parameters, expected at most 0.666"),
        ({"ratio": 0.5, "allocate": "fair"}, "allocate: got 'fair'"),
        ({"ratio": 0.5, "floor": 1.5}, "floor: got 1.5"),
        ({"ratio": 0.5, "schedule": "daily"}, "schedule: got 'daily'"),
        ({"ratio": 0.5, "schedule": "cubic"}, "rounds: got 1, expected 2 or more"),
        ({"ratio": 0.5, "rounds": 3}, "rounds: got 3, expected 1"),
        ({"keep": {NAME: (0,)}, "schedule": "cubic", "rounds": 2}, "got keep and schedule='cubic'"),
        ({"ratio": 0.5, "train": {"steps": 2, "speed": 1}}, "Distil: unknown setting 'speed'"),
        ({"ratio": 0.5, "before": {"steps": 2}}, "before: got no rule"),
        ({"ratio": 0.5, "before": {"rule": "hard", "steps": 2}}, "rule: got 'hard'"),
        ({"ratio": 0.5, "before": {"rule": "slimming", "strength": 0.0, "steps": 2}}, "strength: got 0.0"),
        ({"ratio": 0.5, "before": {"rule": "soft", "every": 0, "steps": 2}}, "every: got 0"),
        (
            {"ratio": 0.5, "schedule": "cubic", "rounds": 2, "before": {"rule": "soft", "steps": 2}},
            "rule soft and a schedule",
        ),
        ({"ratio": 0.5, "score": "l3"}, "score: got 'l3'"),
        ({"ratio": 0.5, "multiple": 0}, "multiple: got 0"),
        ({"ratio": 0.5}, "nothing to remove"),
        ({"ratio": 0.5, "multiple": 1, "fixed": ("first",)}, "no group can be cut"),
        ({"keep": {NAME: (0,)}, "fixed": ("first",)}, "kept whole"),
        ({"keep": {NAME: (3,)}}, "got unit 3, expected 0 to 2"),
        ({"keep": {NAME: ()}}, "no unit to keep"),
        ({"keep": {"none:0": (0,)}}, "no such group"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prune(**settings).apply(*two())


def test_what_the_task_keeps_is_kept() -> None:
    with pytest.raises(InputError, match="no group can be cut"):
        Prune(ratio=0.5, multiple=1).apply(*two(keep=("second",)))


def test_sites_are_widths() -> None:
    assert [(a.name, a.choices, a.ordered) for a in Prune(ratio=0.5, multiple=1).sites(*two())] == [
        (f"Prune:{NAME}", (1, 2, 3), True)
    ]


class Deep(nn.Module):
    """Three residual branches, of which the second does nearly nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
        for branch, gain in zip(self.branches, (1.0, 1e-3, 0.5), strict=True):
            nn.init.eye_(branch.weight)
            branch.weight.data.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


def deep(**task: Any) -> tuple[Graph, Context]:
    model, x = Deep(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return capture(model, x), Context(Task(model, x, **task), calibrate=((x,),))


def test_the_block_that_matters_least_goes_first() -> None:
    graph, context = deep()
    assert RemoveBlocks(count=1).resolve(graph, context).blocks == ("branches.1",)
    assert RemoveBlocks(count=2).resolve(graph, context).blocks == ("branches.1", "branches.2")
    x = context.calibrate[0][0]
    with torch.no_grad():
        found = RemoveBlocks(blocks=("branches.0", "branches.1")).apply(graph, context)(x)
    assert isinstance(found, Tensor)
    assert torch.allclose(found, 1.5 * x)
    assert [a.name for a in RemoveBlocks(count=1).sites(graph, context)][1] == "RemoveBlocks:branches.1"


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({}, {}, "got neither"),
        ({"count": 4}, {}, "expected 0 to 3"),
        ({"count": -1}, {}, "expected 0 to 3"),
        ({"blocks": ("nope",)}, {}, "no block of this name"),
        ({"blocks": ("branches.1",)}, {"keep": ("branches.1",)}, "keep= names"),
        ({"count": 3}, {"keep": ("branches.1",)}, "expected 0 to 2"),
    ],
)
def test_wrong_blocks(settings: dict[str, Any], task: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RemoveBlocks(**settings).apply(*deep(**task))


class Turned(nn.Module):
    """x + f(x) with f(x) = 0 x, a quarter turn added, and x."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
        for branch, rows in zip(self.branches, ([[0, 0], [0, 0]], [[0, -1], [1, 0]], [[1, 0], [0, 1]]), strict=True):
            branch.weight.data = torch.tensor(rows, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


def test_how_far_blocks_turn_by_hand() -> None:
    model, x = Turned(), torch.randn(3, 2)
    graph, context = capture(model, x), Context(Task(model, x), calibrate=((x,),))
    found = blocks(graph)
    # x and x + a quarter turn of x lie 45 degrees apart; x and 2 x not at all
    cosine, angular = (list(block_scores(graph, list(found), s, context).values()) for s in ("cosine", "angular"))
    assert cosine == pytest.approx([0.0, 1 - 0.5**0.5, 0.0], abs=1e-6)
    assert angular == pytest.approx([0.0, 0.25, 0.0], abs=1e-3)
