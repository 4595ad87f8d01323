"""Precision: what is left open is measured once, and then kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from trimtab.core.store import Store
from trimtab.graph.capture import capture
from trimtab.train import precision
from trimtab.train.precision import concrete
from trimtab.train.recipe import Recipe

from .small import setting


def test_what_is_given_is_kept_unmeasured(monkeypatch):
    monkeypatch.setattr(precision, "_fastest", None)
    graph, context = setting()
    given = Recipe(steps=1, precision="bf16", channels_last=True)
    assert concrete(graph, context, given) == given
    assert concrete(graph, context, replace(given, channels_last=None)) == given


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        ({}, [("fp32", False), ("fp32", True), ("bf16", True)]),
        ({"precision": "fp32"}, [("fp32", False), ("fp32", True)]),
        ({"channels_last": True}, [("fp32", True), ("bf16", True)]),
        ({"channels_last": False}, [("fp32", False), ("bf16", False)]),
    ],
)
def test_what_is_open_is_chosen_by_the_clock_and_stored(tmp_path, monkeypatch, given, choices):
    seen = []

    def last(graph, context, options):
        seen.append([(o.precision, o.channels_last) for o in options])
        return len(options) - 1

    monkeypatch.setattr(precision, "_fastest", last)
    graph, context = setting(store=Store(tmp_path))
    recipe = Recipe(steps=1, **given)
    first = concrete(graph, context, recipe)
    assert seen == [choices]
    assert (first.precision, first.channels_last) == choices[-1]
    assert concrete(graph, context, recipe) == first
    assert len(seen) == 1
    concrete(graph, context, replace(recipe, optimiser="adamw"))
    assert len(seen) == 2


def test_a_network_without_images_has_one_layout():
    _, context = setting(train=[(torch.randn(8, 3), torch.zeros(8, dtype=torch.int64))])
    graph = capture(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 3))
    settled = concrete(graph, context, Recipe(steps=1))
    assert settled.channels_last is False
    assert settled.precision in ("fp32", "bf16")


def test_measuring_changes_nothing():
    graph, context = setting(dropout=0.5)
    before = graph.copy()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    concrete(graph, context, Recipe(steps=1))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(v, before.tensors()[k]) for k, v in graph.tensors().items())
