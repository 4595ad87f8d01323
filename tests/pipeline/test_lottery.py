"""Lottery: the right number of weights, the right start, the right rates, and nothing trained twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from trimtab.cli.lottery import lottery as command
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays
from trimtab.graph.save import load
from trimtab.pipeline.lottery import Between, lottery
from trimtab.pipeline.prepare import scored
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe, rate

from ..train.small import images, setting, task

PLAIN = Recipe(steps=12, lr=0.05, precision="fp32", channels_last=False)


@dataclass(frozen=True)
class Watch:
    """Notes the rate of each step, and the weights after one."""

    at: int = 0

    def begin(self, training, recipe):
        return {"rates": torch.zeros(recipe.steps), "weight": torch.zeros(4, 8)}

    def penalty(self, training, state, recipe):
        return None

    def after(self, training, state, recipe):
        # Between has not changed the count yet where this rule comes first
        SEEN.append((training.steps, training.optimiser.param_groups[0]["lr"]))
        if training.steps == self.at:
            AT.append(training.tensors["linear.weight"].detach().clone())

    def end(self, training, state):
        pass


SEEN: list[tuple[int, float]] = []
AT: list[torch.Tensor] = []


def watched(rules):
    SEEN.clear()
    graph, context = setting()
    return fit_network(graph, context, replace(PLAIN, rules=rules))


def test_a_part_of_a_training_is_that_part():
    watched((Watch(5),))
    assert [step for step, _ in SEEN] == list(range(1, 13))
    part = watched((Watch(), Between(0, 5)))
    assert [(i + 1, rate(PLAIN, i)) for i in range(5)] == SEEN
    assert torch.equal(part.tensors()["linear.weight"], AT[-1])
    watched((Watch(), Between(5, 12)))
    assert [(i + 1, rate(PLAIN, i)) for i in range(5, 12)] == SEEN


def whole(**changes):
    return task(test=Arrays(*images(seed=2), batch=16), name="small", **changes)


def test_levels_have_as_many_weights_as_they_say_and_a_run_goes_on(tmp_path):
    seen = []

    def progress(what, done, total):
        seen.append(what)

    options = {"rounds": 3, "rate": 0.5, "steps": 6, "rewind": 2, "train": {"channels_last": False}}
    found = lottery(whole(), out=tmp_path / "run", progress=progress, **options)
    assert "train" in seen
    assert [level.left for level in found.levels] == [124, 62, 31]  # of 216 + 32
    assert found.dense.split == "test"
    assert found.dense.interval is not None
    written = json.loads((tmp_path / "run" / "lottery.json").read_text())
    assert written == json.loads(json.dumps(found.json()))
    assert written["levels"][0]["fresh"]["unit"] == "fraction"
    winners = [i for i, level in enumerate(found.levels) if level.validate.value >= found.validate.value]
    assert found.winner == max(winners, default=None)
    assert found.stopped is None
    seen.clear()
    assert lottery(whole(), out=tmp_path / "run", progress=progress, **options) == found
    assert "train" not in seen
    with pytest.raises(InputError, match="another run"):
        lottery(whole(), out=tmp_path / "run", **{**options, "rate": 0.4})


def test_the_winner_is_chosen_on_validation_data_and_told_on_test_data(tmp_path, monkeypatch):
    values = {"validate": iter([0.5, 0.6, 0.5, 0.4]), "test": iter([0.9, *[0.1] * 9])}

    def said(prepared, graph, on):
        return replace(scored(prepared, graph, on), value=next(values[on]))

    monkeypatch.setattr("trimtab.pipeline.lottery.scored", said)
    found = lottery(whole(), out=tmp_path, rounds=3, rate=0.5, steps=2, train={"channels_last": False})
    assert found.winner == 1
    assert [level.validate.value for level in found.levels] == [0.6, 0.5, 0.4]
    assert (found.dense.value, found.levels[1].ticket.value, found.levels[1].ticket.split) == (0.9, 0.1, "test")
    ticket = load(tmp_path / "ticket").tensors()
    assert sum(int((ticket[n] != 0).sum()) for n in ("conv1.weight", "linear.weight")) == found.levels[1].left == 62


def test_a_round_that_would_empty_a_layer_is_the_end(tmp_path):
    found = lottery(whole(), out=tmp_path, rounds=12, rate=0.8, steps=1, train={"channels_last": False})
    done = len(found.levels)
    assert 0 < done < 12
    assert found.stopped.startswith(f"round {done + 1} of 12: Sparsify: ratio would empty a layer")
    written = json.loads((tmp_path / "lottery.json").read_text())
    assert (len(written["levels"]), written["stopped"]) == (done, found.stopped)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"train": None}, {}, "no train"),
        ({"loss": None}, {}, "no loss"),
        ({"score": None}, {}, "no score"),
        ({}, {"rate": 1.0}, "rate"),
        ({}, {"steps": 5, "rewind": 5}, "rewind"),
        ({}, {"train": {"alpha": 0.5}}, "no teacher"),
        ({}, {"train": {"features": 1.0}}, "features or relations"),
        ({}, {"train": {"relations": {"method": "rkd"}}}, "features or relations"),
    ],
)
def test_what_is_wrong_is_named(changes, options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        lottery(whole(**changes), out=tmp_path / "run", **options)


def test_the_command_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trimtab.pipeline.load.load_task", lambda name: whole())
    assert command("small", rounds=1, rate=0.5, steps=2, rewind=0, lr=0.05, out=tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "random mask" in told
    assert "124" in told
    assert "test data, 95 % intervals" in told
