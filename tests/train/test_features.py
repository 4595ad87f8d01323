"""Features: places that two networks share, their distance by hand, and a training that uses them."""

import pytest
import torch
from torch import nn

from tests.train.small import images, noisy
from trimtab.compress.recover import Distil
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.blocks import remove
from trimtab.graph.capture import capture
from trimtab.graph.coupling import groups
from trimtab.graph.modes import set_mode
from trimtab.graph.surgery import cut
from trimtab.train.features import feature_loss, tapped
from trimtab.train.places import places


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))


class Chain(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    x, y = images()
    task = Task(Chain(3).eval(), x[:2], train=Arrays(x, y, batch=8, shuffle=True, transform=noisy))
    graph = capture(task.model, task.example)
    return graph, Context(task, teacher=set_mode(graph.copy(), False))


def test_the_distance_by_hand():
    student = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[0.0]])}
    teacher = {"a": torch.tensor([[1.0, 4.0]]), "b": torch.tensor([[2.0]])}
    assert float(feature_loss(student, teacher)) == pytest.approx((4 / 17 + 1.0) / 2)


def test_places_are_behind_the_additions_that_both_have(setting):
    graph, _ = setting
    whole = places(graph, graph)
    assert len(whole) == 3
    assert all(name.startswith("relu") for name in whole)
    inner = next(g for g in groups(graph) if g.name.startswith("blocks.0.one"))
    assert places(cut(graph, {inner.name: [0, 2]}), graph) == whole
    assert places(remove(graph, ["blocks.1"]), graph) == (whole[0], whole[2])
    assert places(graph, graph, most=2) == (whole[1], whole[2])


def test_where_the_additions_changed_their_width_activations_are_compared(setting):
    graph, _ = setting
    residual = next(g for g in groups(graph) if g.name.startswith("stem"))
    left = places(cut(graph, {residual.name: [0, 1, 2]}), graph)
    assert len(left) == 3  # those inside the blocks, six wide in both
    assert not set(left) & set(places(graph, graph))


def test_tapped_networks_answer_as_before(setting):
    graph, _ = setting
    x = torch.randn(2, 3, 8, 8)
    own = set_mode(graph.copy(), False)
    before = own(x)
    names = places(own, own)
    seen = tapped(own.net, names)
    assert torch.equal(own(x), before)
    assert tuple(seen) == names
    assert all(value.shape == (2, 6, 8, 8) for value in seen.values())


def test_training_brings_the_features_nearer(setting):
    graph, context = setting
    inner = next(g for g in groups(graph) if g.name.startswith("blocks.0.one"))
    student = set_mode(cut(graph, {inner.name: [0, 2]}), False)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def distance(network):
        ours, theirs = network.copy(), set_mode(graph.copy(), False)
        names = places(student, graph)
        mine, other = tapped(ours.net, names), tapped(theirs.net, names)
        with torch.no_grad():
            ours(x)
            theirs(x)
        return float(feature_loss(mine, other))

    settings = {"alpha": 0.0, "lr": 0.02, "weight_decay": 0.0, "precision": "fp32", "channels_last": False}
    taught = Distil(60, features=10.0, **settings).apply(student, context)
    alone = Distil(60, **settings).apply(student, context)
    assert distance(taught) < 0.7 * distance(student)
    assert distance(taught) < distance(alone)
    assert taught.outputs == graph.outputs


def test_a_weight_below_zero_is_refused():
    with pytest.raises(InputError, match="features"):
        Distil(10, features=-1.0).recipe()
