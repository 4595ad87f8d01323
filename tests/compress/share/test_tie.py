"""Tie: one weight in several places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.compress.share.tie import Tie
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.module import module
from trimtab.graph.save import load, save


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


@pytest.fixture(scope="module")
def setting() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(32, 8)
    with torch.no_grad():
        model.blocks[2].up.weight.copy_(model.blocks[0].up.weight * 1.01)
    task = Task(model, x[:2], train=Arrays(x, torch.arange(32) % 3, batch=16), loss=nn.functional.cross_entropy)
    graph = capture(model, x[:2])
    return graph, Context(task, teacher=graph)


def test_blocks_share_the_mean_of_each_parameter(setting: tuple[Graph, Context], tmp_path: Path) -> None:
    graph, context = setting
    found = Tie(groups=(("blocks.0", "blocks.1", "blocks.2"),)).apply(graph, context)
    mean = torch.stack([graph.tensors()[f"blocks.{i}.up.weight"] for i in range(3)]).mean(0)
    torch.testing.assert_close(found.tensors()["blocks.0.up.weight"], mean)
    assert len(found.tensors()) == 6
    assert dict(found.tied)["blocks.2.down.bias"] == "blocks.0.down.bias"
    x = torch.randn(4, 8)
    model = Net().eval()
    model.load_state_dict(module(found).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))
        save(found, tmp_path)
        torch.testing.assert_close(load(tmp_path)(x), model(x))


def test_the_nearest_pair_is_tied_first(setting: tuple[Graph, Context]) -> None:
    chosen = Tie(count=1).resolve(*setting)
    assert chosen.groups == (("blocks.0.up.weight", "blocks.2.up.weight"),)
    assert Tie(count=1).apply(*setting).tied == (("blocks.2.up.weight", "blocks.0.up.weight"),)
    assert Tie(count=1).sites(*setting)[0].choices == (0, 1, 2)


def test_training_goes_on_with_one_weight(setting: tuple[Graph, Context]) -> None:
    train = {"steps": 3, "lr": 0.05, "precision": "fp32", "channels_last": False}
    still, moved = (
        Tie(groups=(("blocks.0", "blocks.1"),), train=t).apply(*setting).tensors()["blocks.0.up.weight"]
        for t in (None, train)
    )
    assert not torch.equal(still, moved)


@pytest.mark.parametrize("settings", [{"count": 1}, {"groups": (("blocks.0", "blocks.1"),)}])
def test_a_resolved_plan_settles_how_it_trains(settings: dict, setting: tuple[Graph, Context]) -> None:
    asked = {"steps": 3, "precision": "fp32"}
    resolved = Tie(**settings, train=asked).resolve(*setting)
    assert resolved.train is not None
    assert resolved.train == {**asked, "channels_last": resolved.train["channels_last"]}
    assert isinstance(resolved.train["channels_last"], bool)
    assert resolved.groups
    assert resolved.count is None
    assert resolved.resolve(*setting) == resolved


def test_tying_again_keeps_the_earlier_names(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    once = Tie(groups=(("blocks.1", "blocks.2"),)).apply(graph, context)
    twice = Tie(groups=(("blocks.0", "blocks.1"),)).apply(once, context)
    assert dict(twice.tied)["blocks.2.up.weight"] == "blocks.0.up.weight"
    assert set(dict(twice.tied).values()) <= set(twice.tensors())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither, expected one of them"),
        ({"count": 1, "groups": (("a", "b"),)}, "both"),
        ({"count": 9}, "count: got 9, expected 1 to 2"),
        ({"groups": (("blocks.0",),)}, "two or more different names"),
        ({"groups": (("blocks.0", "nope"),)}, "nope: got no layer of this name"),
        ({"groups": (("blocks.0.up", "blocks.0.down"),)}, "shapes differ"),
        ({"groups": (("blocks.0", "head"),)}, "got no .up.weight in one of head"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict, said: str, setting: tuple[Graph, Context]) -> None:
    with pytest.raises(InputError) as caught:
        Tie(**settings).apply(*setting)
    assert said in str(caught.value)
