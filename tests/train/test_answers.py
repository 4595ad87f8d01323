"""The teacher's answers: asked for once, never taken for other inputs, and without effect on the result."""

import itertools
from dataclasses import replace

import torch

from trimtab.core.store import Store
from trimtab.core.task import Arrays
from trimtab.train.answers import Answers
from trimtab.train.loop import fit_network
from trimtab.train.network import Learner
from trimtab.train.recipe import Distillation, Recipe

from .small import images, same, setting

RECIPE = Recipe(steps=12, lr=0.05, precision="fp32", channels_last=False, distil=Distillation())


def asked(monkeypatch):
    """How often networks are called, by whether a gradient is needed: the teacher's need none."""
    calls = []
    forward = Learner.forward
    monkeypatch.setattr(Learner, "forward", lambda *a, **k: calls.append(torch.is_grad_enabled()) or forward(*a, **k))
    return calls


def test_a_second_student_waits_for_no_answer_and_learns_the_same(tmp_path, monkeypatch):
    graph, alone = setting()
    _, context = setting(store=Store(tmp_path))
    first = fit_network(graph, context, RECIPE)
    assert same(first, fit_network(graph, alone, RECIPE))
    calls = asked(monkeypatch)
    second = fit_network(first, context, RECIPE)
    assert calls == [True] * 12
    assert same(second, fit_network(first, alone, RECIPE))
    assert calls.count(False) == 12


def test_a_longer_training_asks_for_the_rest_only(tmp_path, monkeypatch):
    graph, context = setting(store=Store(tmp_path))
    fit_network(graph, context, RECIPE)
    calls = asked(monkeypatch)
    fit_network(graph, context, replace(RECIPE, steps=17))
    assert calls.count(False) == 5


def test_data_in_another_order_each_time_are_asked_for_anew(tmp_path, monkeypatch):
    number = itertools.count()
    data = Arrays(*images(), batch=8, shuffle=True, transform=lambda x: x + 0.01 * next(number))
    graph, context = setting(store=Store(tmp_path), train=data)
    fit_network(graph, context, RECIPE)
    calls = asked(monkeypatch)
    fit_network(graph, context, replace(RECIPE, lr=0.02))
    assert calls.count(False) == 12


def test_another_teacher_or_seed_is_asked_anew(tmp_path, monkeypatch):
    graph, context = setting(store=Store(tmp_path))
    trained = fit_network(graph, context, RECIPE)
    calls = asked(monkeypatch)
    fit_network(graph, replace(context, teacher=trained), RECIPE)
    fit_network(graph, context, replace(RECIPE, seed=1))
    assert calls.count(False) == 24


def test_large_answers_are_not_kept(tmp_path):
    answers = Answers(Store(tmp_path), "answers")
    for shape, kept in (((2, 3), True), ((2, 40_000), False)):
        first = answers.to([torch.ones(shape)], 0, lambda shape=shape: torch.zeros(shape))
        again = answers.to([torch.ones(shape)], 0, lambda: None)
        assert (again is first) == kept
    answers.keep()
    assert torch.equal(Answers(Store(tmp_path), "answers").to([torch.ones(2, 3)], 0, lambda: None), torch.zeros(2, 3))
