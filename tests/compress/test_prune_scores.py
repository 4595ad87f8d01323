"""Every score against values worked out by hand, or by the definition on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.compress.prune.activations import greedy
from trimtab.compress.prune.magnitude import distances, lamp
from trimtab.compress.prune.places import places, readings
from trimtab.compress.prune.scores import unit_scores
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.model import Graph

NAME = "first.weight:0"
X = torch.tensor([[1.0, 0.0], [0.0, 2.0]])


class Two(nn.Module):
    """Two linear layers with weights that can be added up by hand, a ReLU between them or none."""

    def __init__(self, rectified: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
        self.rectified = rectified
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -1.0], [3.0, 4.0], [0.0, 1.0]]))
            self.second.weight.copy_(torch.tensor([[2.0, 1.0, -3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)  # [1, 3, 0] and [-2, 8, 2] for the rows of X
        return self.second(hidden.relu() if self.rectified else hidden)


def mean(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.mean()


def two(rectified: bool = False, **task: Any) -> tuple[Graph, Context]:
    model = Two(rectified)
    return capture(model, X), Context(Task(model, X, **task), calibrate=((X, torch.zeros(2)),))


def scored(score: Any, graph: Graph, context: Context, across: bool = False) -> list[float]:
    found = [g for g in groups(graph) if g.name == NAME]
    return unit_scores(graph, found, score, context, across)[NAME].tolist()


def normed(*parts: list[float]) -> list[float]:
    """Each part over its mean, and the mean of the parts."""
    return [sum(p[i] / (sum(p) / len(p)) for p in parts) / len(parts) for i in range(len(parts[0]))]


def test_geometric_median() -> None:
    # between rows of first 29^.5, 5^.5 and 18^.5; between columns of second, 2, 1 and -3, 1, 5 and 4
    rows = [29**0.5 + 5**0.5, 29**0.5 + 18**0.5, 5**0.5 + 18**0.5]
    assert scored("fpgm", *two()) == pytest.approx(normed(rows, [6.0, 5.0, 9.0]))


def test_lamp() -> None:
    # squares: rows of first 2, 25, 1 over 28/3, columns of second 4, 1, 9 over 14/3; q = 30/56, 81/56, 57/56
    wanted = [30 / 168, 1.0, 57 / 138]
    assert scored("lamp", *two(), across=True) == pytest.approx(wanted)
    assert scored("lamp", *two()) == pytest.approx(normed(wanted))


def test_squared_taylor_and_sums_across_groups() -> None:
    # second^T (mean of x over rows) = [2, 1, -3]^T [0.5, 1]; w g by row: 1 - 2 = -1, 1.5 + 4 = 5.5, -3; and so second's
    graph, context = two(loss=mean)
    assert scored("taylor", graph, context, across=True) == pytest.approx([2.0, 11.0, 6.0])
    assert scored("taylor_squared", graph, context, across=True) == pytest.approx([2.0, 2 * 5.5**2, 18.0])
    assert scored("taylor_squared", graph, context) == pytest.approx(normed([1.0, 30.25, 9.0]))


def test_gates() -> None:
    # what each unit adds to each sample's loss: [2, 3, 0] and [-4, 8, -6]
    graph, context = two(loss=mean)
    assert scored("taylor_gate", graph, context, across=True) == pytest.approx([3.0, 5.5, 3.0])
    assert scored("taylor_gate", graph, context) == pytest.approx(normed([3.0, 5.5, 3.0]))
    wanted = [(4 + 16) / 4, (9 + 64) / 4, 36 / 4]
    assert scored("fisher", graph, context, across=True) == pytest.approx(wanted)


def test_gates_stand_behind_the_activation() -> None:
    # [1, 3, 0] and [0, 8, 2] times second
    graph, context = two(rectified=True, loss=mean)
    assert scored("taylor_gate", graph, context, across=True) == pytest.approx([1.0, 5.5, 3.0])


def test_share_of_zeros() -> None:
    graph, context = two(rectified=True)
    assert scored("apoz", graph, context, across=True) == pytest.approx([0.5, 1.0, 0.5])
    with pytest.raises(InputError, match=r"apoz: first.weight:0: got values that are never zero"):
        scored("apoz", *two_shifted())


def two_shifted() -> tuple[Graph, Context]:
    model = Two()
    x = X + 3
    return capture(model, x), Context(Task(model, x), calibrate=((x,),))


def test_reconstruction_error() -> None:
    # what units add: [2, 3, 0] and [-4, 8, -6]. Alone 20, 73, 36; behind unit 0: 73 - 52 or 36 + 48; all together 29
    found = scored("thinet", *two(), across=True)
    assert found == pytest.approx([20 / 29, 41 / 29, 41 / 29])
    assert found[2] > found[1]


def test_the_greedy_choice_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    parts = torch.randn(40, 6, dtype=torch.float64)  # what each unit adds to 40 outputs
    gone: list[int] = []
    for _ in range(6):
        left = [u for u in range(6) if u not in gone]
        gone.append(min(left, key=lambda u: float(parts[:, [*gone, u]].sum(1).square().sum())))
    assert torch.sort(greedy(parts.T @ parts)).indices.tolist() == gone


class Images(nn.Module):
    """A convolution that reads channels, with a stride, padding and a second reader, and one by runs of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.second = nn.Conv2d(4, 3, 3, padding=(1, 0), dilation=(1, 2), stride=(2, 1))
        self.third = nn.Linear(4 * 5 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.third(y.flatten(1)) + self.second(y).mean((2, 3))[:, :2]


def test_reconstruction_of_convolutions_by_single_channels() -> None:
    torch.manual_seed(0)
    model, x = Images().eval(), torch.randn(6, 2, 5, 5)
    graph, context = capture(model, x), Context(Task(model, x), calibrate=((x,),))
    found = [g for g in groups(graph) if g.name == NAME]
    assert {r.layer: r.member.dim for r in readings(graph, found)[NAME]} == {"conv2d_1": 1, "linear": 1}
    with torch.no_grad():
        y = model.first(x).relu().double()
        second, third = model.second.double(), model.third.double()
        grams = []
        for alone in (lambda v: functional.conv2d(v, second.weight, None, (2, 1), (1, 0), (1, 2)),
                      lambda v: v.flatten(1) @ third.weight.T):  # fmt: skip
            each = torch.stack([alone(y * (torch.arange(4) == c)[:, None, None]).flatten() for c in range(4)])
            grams.append(each @ each.T / (each @ each.T).sum())
    wanted = greedy((grams[0] + grams[1]) / 2)
    assert torch.allclose(unit_scores(graph, found, "thinet", context, across=True)[NAME], wanted)


def test_gates_of_images_are_derivatives_of_each_sample() -> None:
    torch.manual_seed(0)
    model, x = Images().eval(), torch.randn(6, 2, 5, 5)
    target = torch.tensor([0, 1, 1, 0, 1, 0])
    task = Task(model, x, loss=functional.cross_entropy)
    graph, context = capture(model, x), Context(task, calibrate=((x, target),))
    found = [g for g in groups(graph) if g.name == NAME]
    assert [p.layer for p in places(graph, found)[NAME]] == ["linear", "conv2d_1"]

    def outputs(gate: Tensor, sample: Tensor) -> Tensor:
        y = model.first(sample[None]).relu() * gate[:, None, None]
        return model.third(y.flatten(1)) + model.second(y).mean((2, 3))[:, :2]

    slopes = []
    for sample, label in zip(x, target, strict=True):
        gate = torch.ones(4, requires_grad=True)
        loss = functional.cross_entropy(outputs(gate, sample), label[None])
        slopes.append(torch.autograd.grad(loss, gate)[0].double())
    each = torch.stack(slopes)
    assert torch.allclose(unit_scores(graph, found, "fisher", context, True)[NAME], (each**2).mean(0) / 2, rtol=1e-4)
    assert torch.allclose(unit_scores(graph, found, "taylor_gate", context, True)[NAME], each.abs().mean(0), rtol=1e-4)


@pytest.mark.parametrize("score", ["apoz", "thinet"])
def test_scores_of_inputs_need_data_without_labels(score: str) -> None:
    model = Two(rectified=True)
    graph = capture(model, X)
    with pytest.raises(InputError, match=f"score {score} needs data"):
        scored(score, graph, Context(Task(model, X)))
    assert len(scored(score, graph, Context(Task(model, X, train=[(X,)])))) == 3


@pytest.mark.parametrize("score", ["taylor_gate", "fisher", "taylor_squared"])
def test_scores_of_the_loss_say_what_is_missing(score: str) -> None:
    graph, context = two()
    with pytest.raises(InputError, match=f"score {score} needs a loss"):
        scored(score, graph, context)


def test_torch_pruning_ranks_alike() -> None:
    peer = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.Conv2d(12, 7, 1, bias=False)).eval()
    x = torch.randn(2, 3, 6, 6)
    graph, context = capture(model, x), Context(Task(model, x))
    found = [g for g in groups(graph) if g.name == "0.weight:0"]
    theirs_of = peer.DependencyGraph().build_dependency(model, example_inputs=x)
    together = theirs_of.get_pruning_group(model[0], peer.prune_conv_out_channels, idxs=list(range(12)))
    rows, columns = model[0].weight.detach().double(), model[2].weight.detach().double()
    for p, name in ((1, "l1"), (2, "l2")):
        theirs = peer.importance.GroupMagnitudeImportance(p=p, group_reduction="mean", normalizer=None)(together)
        parts = rows.abs().pow(p).sum((1, 2, 3)), columns.abs().pow(p).sum((0, 2, 3))
        assert torch.allclose(theirs.double(), (parts[0] + parts[1]) / 2)
        # theirs has no root and adds weights as they are; ours has the norm, and weights of unlike size count alike
        roots = [part ** (1 / p) for part in parts]
        wanted = (roots[0] / roots[0].mean() + roots[1] / roots[1].mean()) / 2
        assert torch.allclose(unit_scores(graph, found, name, context)["0.weight:0"], wanted)  # type: ignore[arg-type]
    # theirs squares the weights before it takes distances; the paper (eq. 4) and ours do not
    median = peer.importance.FPGMImportance(group_reduction="first", normalizer=None)(together)
    assert torch.allclose(median.double(), distances(rows.flatten(1).square()), rtol=1e-4)
    some = torch.rand(9)
    assert torch.allclose(peer.importance.LAMPImportance()._lamp(some.clone()), lamp(some), rtol=1e-5)
