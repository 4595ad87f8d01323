"""The rules of sparse training, step by step: how many zeros there are, which go and which grow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from trimtab.compress.sparsify.pattern import POOL
from trimtab.compress.sparsify.rules import Gradual, Moving
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe
from trimtab.train.step import advance, begin

from ..train.small import setting

PLAIN = Recipe(steps=20, lr=0.05, precision="fp32", channels_last=False)
AXES = {"conv1.weight": 0, "linear.weight": 0}
SIZE = 216 + 32
MOVEMENT = Gradual({POOL: 60}, AXES, first=0, last=15, every=2, score="movement")


def watched(rule, steps, recipe=PLAIN, start=None):
    """Weights after each step of a training under a rule, and the gradients that the step had."""
    graph, context = setting()
    if start is not None:
        with torch.no_grad():
            start(graph.tensors())
    recipe = replace(recipe, rules=(rule,))
    training = begin(graph, context, recipe)
    batches = list(context.task.train)
    for i in range(steps):
        advance(training, batches[i % len(batches)], context.task, recipe)
        yield training, {n: training.tensors[n].detach().clone() for n in AXES}


def count(weights):
    return sum(int((w != 0).sum()) for w in weights.values())


def test_the_number_of_zeros_follows_the_cube():
    rule = Gradual({POOL: 48}, AXES, first=2, last=12, every=5)
    counts = [count(w) for _, w in watched(rule, 14)]
    middle = 48 + round((SIZE - 48) * (1 - 5 / 10) ** 3)
    assert counts == [SIZE] * 6 + [middle] * 5 + [48] * 3


def test_the_cube_starts_from_the_weights_that_are_not_zero():
    for rule in (
        Gradual({POOL: 48}, AXES, first=2, last=12, every=5),
        Gradual({"conv1.weight": 40, POOL: 8}, AXES, first=2, last=12, every=5),
    ):
        counts = [count(w) for _, w in watched(rule, 14, start=half)]
        middle = 48 + round((SIZE // 2 - 48) * (1 - 5 / 10) ** 3)
        assert counts[:6] == [SIZE // 2] * 6
        assert counts[6:11] == pytest.approx([middle] * 5, abs=1)  # two of them are rounded
        assert counts[11:] == [48] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_zeros_move_on_a_gpu(kind):
    graph, context = setting()
    with torch.no_grad():
        half(graph.tensors())
    rule = Moving(kind, tuple(AXES), every=3, last=9, fraction=0.4)
    made = fit_network(graph, replace(context, device="cuda"), replace(PLAIN, rules=(rule,))).tensors()
    assert count({n: made[n] for n in AXES}) <= SIZE // 2
    assert any(bool(((made[n] != 0) & (graph.tensors()[n] == 0)).any()) for n in AXES)


def test_a_zero_stays_zero_and_the_least_go():
    rule = Gradual({"conv1.weight": 40, "linear.weight": 20}, AXES, first=0, last=10, every=2)
    before = None
    for _, weights in watched(rule, 12):
        if before is not None:
            for name, value in weights.items():
                assert bool((value[before[name] == 0] == 0).all())
        before = weights
    assert {n: int((w != 0).sum()) for n, w in before.items()} == {"conv1.weight": 40, "linear.weight": 20}


def test_movement_keeps_what_moves_away_from_zero():
    rule = Gradual({POOL: 100}, AXES, first=0, last=5, every=5, score="movement")
    graph, context = setting()
    recipe = replace(PLAIN, rules=(rule,))
    training, batches = begin(graph, context, recipe), list(context.task.train)
    total = {n: torch.zeros_like(training.tensors[n]) for n in AXES}
    for i in range(5):
        before = {n: training.tensors[n].detach().clone() for n in AXES}
        advance(training, batches[i], context.task, recipe)
        for n in AXES:
            total[n] -= before[n] * training.tensors[n].grad
    scores = torch.cat([total[n].flatten() for n in AXES])
    kept = torch.cat([(training.tensors[n] != 0).flatten() for n in AXES])
    assert int(kept.sum()) == 100
    assert float(scores[kept].min()) >= float(scores[~kept].max())


def test_movement_lets_a_weight_return_with_its_old_value():
    rule = Gradual({POOL: 100}, AXES, first=0, last=12, every=1, score="movement")
    returned, held = 0, {}
    for training, weights in watched(rule, 12):
        for name, value in weights.items():
            kept = training.states[0][f"held/{name}"]
            gone = value == 0
            if name in held:
                back = held[name][0] & ~gone
                returned += int(back.sum())
                assert torch.equal(value[back], held[name][1][back])
            held[name] = gone, kept.clone()
    assert returned > 0


def half(tensors):
    for name in AXES:
        flat = tensors[name].view(-1)
        flat[flat.abs().argsort()[: flat.numel() // 2]] = 0.0


@pytest.mark.parametrize("kind", ["rigl", "set"])
def test_as_many_grow_as_go_and_they_start_at_zero(kind):
    rule = Moving(kind, tuple(AXES), every=3, last=9, fraction=0.4)
    before, moved = None, []
    for training, weights in watched(rule, 12, start=half):
        zeros = {n: training.states[0][f"zeros/{n}"].clone() for n in AXES}
        assert {n: int((~z).sum()) for n, z in zeros.items()} == {"conv1.weight": 108, "linear.weight": 16}
        for name, value in weights.items():
            assert bool((value[zeros[name]] == 0).all())
        if before is not None:
            grown = {n: before[n] & ~zeros[n] for n in AXES}
            moved.append(int(grown["conv1.weight"].sum()))
            for name, at in grown.items():
                assert bool((weights[name][at] == 0).all())
                memory = training.optimiser.state[training.tensors[name]]["momentum_buffer"]
                assert bool((memory[at] == 0).all())
        before = zeros
    places = [i + 2 for i, n in enumerate(moved) if n]  # after which steps
    assert set(places) <= {3, 6, 9}
    assert 3 in places
    share = 0.4 * ((1 + math.cos(math.pi / 3)) / 2 if kind == "rigl" else 1)
    assert moved[1] <= int(share * 108)
    if kind == "set":
        assert moved[1] == int(share * 108)
        assert moved[-1] == 0


def test_rigl_grows_the_greatest_gradients_among_zeros():
    rule = Moving("rigl", ("conv1.weight",), every=4, last=8, fraction=0.3)
    before = None
    for training, _ in watched(rule, 4, start=half):
        zeros = training.states[0]["zeros/conv1.weight"]
        if training.steps == 4:
            gradient = training.tensors["conv1.weight"].grad.abs()
            grown, left = before & ~zeros, before & zeros
            assert int(grown.sum()) > 0
            assert float(gradient[grown].min()) >= float(gradient[left].max())
        before = zeros.clone()


@pytest.mark.parametrize(
    "rule",
    [
        MOVEMENT,
        Gradual({POOL: 60}, AXES, first=0, last=15, every=2),
        Moving("set", tuple(AXES), every=3, last=15),
    ],
)
def test_a_killed_training_goes_on_to_the_same_weights(rule, tmp_path):
    from trimtab.core.store import Store

    start = (lambda tensors: None) if rule == MOVEMENT else half
    graph, context = setting()
    with torch.no_grad():
        start(graph.tensors())
    recipe = replace(PLAIN, rules=(rule,), ema=0.8)
    whole = fit_network(graph, context, recipe)

    def stop(what, done, total):
        if done == 9:
            raise KeyboardInterrupt

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit_network(graph, replace(context, store=store, progress=stop), recipe)
    rest = fit_network(graph, replace(context, store=store), recipe)
    assert all(torch.equal(rest.tensors()[n], v) for n, v in whole.tensors().items())
