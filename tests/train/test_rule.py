"""Rules: called where they say, their state kept in checkpoints, their settings part of a training's name."""

from dataclasses import dataclass, replace

import pytest
import torch

from trimtab.core.store import Store
from trimtab.train import loop
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe
from trimtab.train.rule import Rule

from .small import same, setting

PLAIN = Recipe(steps=6, lr=0.05, precision="fp32", channels_last=False)


@dataclass(frozen=True)
class Hold:
    """Holds the first kernel of conv1 where it was, counts its calls, and pulls the linear layer towards zero."""

    pull: float = 0.0

    def begin(self, training, recipe):
        return {"held": training.tensors["conv1.weight"][0].detach().clone(), "calls": torch.tensor(0)}

    def penalty(self, training, state, recipe):
        return self.pull * training.tensors["linear.weight"].square().sum() if self.pull else None

    @torch.no_grad()
    def after(self, training, state, recipe):
        assert training.tensors["linear.weight"].grad is not None
        state["calls"] += 1
        assert int(state["calls"]) == training.steps
        training.tensors["conv1.weight"][0] = state["held"]

    @torch.no_grad()
    def end(self, training, state):
        training.tensors["linear.bias"].fill_(float(state["calls"]))


@dataclass(frozen=True)
class Other(Hold):
    """The same settings under another name."""


class KilledError(Exception):
    pass


def killer(at):
    def progress(what, done, total):
        if done == at:
            raise KilledError

    return progress


def with_rule(rule):
    return replace(PLAIN, rules=(rule,))


def test_a_rule_is_called_after_each_step_and_at_the_end():
    assert isinstance(Hold(), Rule)
    graph, context = setting()
    trained = fit_network(graph, context, with_rule(Hold())).tensors()
    assert torch.equal(trained["conv1.weight"][0], graph.tensors()["conv1.weight"][0])
    assert not torch.equal(trained["conv1.weight"][1], graph.tensors()["conv1.weight"][1])
    assert torch.equal(trained["linear.bias"], torch.full((4,), 6.0))


def test_a_penalty_is_part_of_the_loss():
    graph, context = setting()
    free, pulled = (fit_network(graph, context, with_rule(Hold(pull))).tensors() for pull in (0.0, 1.0))
    assert pulled["linear.weight"].norm() < 0.8 * free["linear.weight"].norm()


def test_a_killed_training_goes_on_with_what_its_rules_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    graph, context = setting()
    recipe = with_rule(Hold(0.1))
    undisturbed = fit_network(graph, context, recipe)
    _, killed = setting(store=Store(tmp_path), progress=killer(3))
    with pytest.raises(KilledError):
        fit_network(graph, killed, recipe)
    _, again = setting(store=Store(tmp_path))
    assert same(fit_network(graph, again, recipe), undisturbed)


def test_a_rule_and_its_settings_name_the_training(tmp_path):
    graph, context = setting(store=Store(tmp_path))
    fit_network(graph, context, with_rule(Hold()))
    _, fails = setting(store=Store(tmp_path), progress=killer(1))
    fit_network(graph, fails, with_rule(Hold()))
    for rule in (Hold(0.5), Other()):
        with pytest.raises(KilledError):
            fit_network(graph, fails, with_rule(rule))
