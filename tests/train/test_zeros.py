"""Exact zeros stay exact: under momentum, weight decay, averages, clipping, Adam, checkpoints and quantisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.recover import Distil
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe
from trimtab.train.step import begin
from trimtab.train.zeros import HoldZeros, has_sparse, is_sparse

from .small import setting

PLAIN = Recipe(steps=6, lr=0.05, precision="fp32", channels_last=False)


def sparse(share=0.5, **more):
    """The small network with a share of the first convolution's values at zero."""
    graph, context = setting(**more)
    with torch.no_grad():
        weight = graph.tensors()["conv1.weight"]
        order = weight.abs().flatten().argsort()[: round(share * weight.numel())]
        weight.view(-1)[order] = 0.0
    return graph, context


@pytest.mark.parametrize(
    "changes", [{}, {"optimiser": "adamw", "lr": 0.01}, {"ema": 0.9}, {"clip": 0.1, "channels_last": True}]
)
def test_zeros_are_held_and_everything_else_learns(changes):
    graph, context = sparse()
    recipe = replace(PLAIN, **changes)
    loose = fit_network(graph, context, recipe).tensors()
    held = fit_network(graph, context, replace(recipe, rules=(HoldZeros(),))).tensors()
    before = graph.tensors()["conv1.weight"] == 0
    assert int(before.sum()) == 108
    assert int((loose["conv1.weight"] == 0).sum()) == 0
    assert torch.equal(held["conv1.weight"] == 0, before)
    assert not torch.signbit(held["conv1.weight"][before]).any()  # +0: -0 would be stored as a value of its own
    for name in ("conv1.weight", "linear.weight", "bn1.bias"):
        changed = held[name] != graph.tensors()[name]
        assert changed.sum() == (108 if name == "conv1.weight" else changed.numel())


def test_only_sparse_weights_are_held():
    graph, context = sparse(0.1)
    assert not has_sparse(graph)
    assert begin(graph, context, replace(PLAIN, rules=(HoldZeros(),))).states == [{}]
    held = begin(graph, context, replace(PLAIN, rules=(HoldZeros(least=0.05),))).states[0]
    assert list(held) == ["conv1.weight"]  # biases of zeros are no sparse weights
    everything = begin(graph, context, replace(PLAIN, rules=(HoldZeros(least=0.0),))).states[0]
    assert list(everything) == ["conv1.weight"]  # a weight without zeros has nothing to hold
    assert not is_sparse(torch.ones(4, 4), 0.0)


def test_a_share_is_reached_whatever_its_division_rounds_to():
    for n in range(2, 200):
        one = torch.ones(n)
        one[0] = 0.0
        assert is_sparse(one, 0.0)
        assert is_sparse(one, 1 / n)
        fifth = torch.ones(5 * n)
        fifth[:n] = 0.0
        assert is_sparse(fifth)
        fifth[0] = 1.0
        assert not is_sparse(fifth)


def test_distillation_holds_zeros_by_itself():
    graph, context = sparse()
    trained = Distil(steps=3, precision="fp32", channels_last=False, ema=0.9).apply(graph, context)
    assert torch.equal(trained.tensors()["conv1.weight"] == 0, graph.tensors()["conv1.weight"] == 0)


def test_a_weight_that_is_zero_as_a_whole_learns():
    graph, context = sparse()
    with torch.no_grad():
        graph.tensors()["conv1.weight"].zero_()
    assert not has_sparse(graph)
    assert begin(graph, context, replace(PLAIN, rules=(HoldZeros(),))).states == [{}]
    everything = begin(graph, context, replace(PLAIN, rules=(HoldZeros(least=0.0),))).states[0]
    assert list(everything) == ["conv1.weight"]  # as a mask that was asked for


def levels_of(graph):
    (name,) = [n for n, t in graph.tensors().items() if t.dtype == torch.int8 and t.shape == (8, 3, 3, 3)]
    return graph.tensors()[name]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": {"bits": 4}, "rounding": "gptq"},
        {"weight": {"bits": 4}, "rounding": {"method": "adaround", "iterations": 60}},
        {"weight": {"kind": "ternary"}, "layers": {"conv1": {"kind": "ternary"}}},
        {"weight": {"bits": 4}, "train": {"steps": 3, "channels_last": False}},
    ],
)
def test_quantised_weights_keep_their_zeros(settings):
    graph, context = sparse()
    context = replace(context, calibrate=tuple(x for x, _ in context.task.validate))
    made = Quantise(**settings).apply(graph, context)
    assert bool((levels_of(made)[graph.tensors()["conv1.weight"] == 0] == 0).all())
