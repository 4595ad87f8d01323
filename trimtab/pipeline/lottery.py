"""Lottery: does a sparse part of a network, trained alone from its own start, do as well as the whole?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trimtab._version import VERSION
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.sparsify.pattern import POOL, Pattern, masks, weight_of
from trimtab.compress.sparsify.weights import Weight, chosen, magnitudes, random_scores, settled
from trimtab.core.context import Context, Progress, quiet
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import Metric
from trimtab.core.store import write_json
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.save import save
from trimtab.pipeline.folder import claim
from trimtab.pipeline.prepare import Prepared, prepare, scored
from trimtab.train.fresh import fresh
from trimtab.train.loop import fit_network
from trimtab.train.recipe import Recipe
from trimtab.train.rule import State
from trimtab.train.step import Training
from trimtab.train.zeros import HoldZeros

SCHEMA = 1
FILE = "lottery.json"
_KINDS = ("ticket", "random", "fresh")


@dataclass(frozen=True)
class Level:
    """What was measured where a share of the weights was left.

    Args:
        left: how many weights.
        share: of the weights that can be zero.
        ticket: the score of the weights that magnitude leaves, trained from the network's own start.
        random: of as many at random in each layer, from the same start.
        fresh: of the ticket's weights from another start.
        validate: the ticket's score on the data that the winner is chosen by.
    """

    left: int
    share: float
    ticket: Metric
    random: Metric
    fresh: Metric
    validate: Metric


@dataclass(frozen=True)
class Lottery:
    """What `lottery` found.

    Args:
        dense: the score of the whole network, trained as the others.
        levels: from many weights to few.
        winner: the place of the sparsest level whose ticket scores no worse than the whole on the validation data,
            which no other score is of; None for none.
        settings: everything that decided it.
        validate: the whole network's score on the validation data.
        stopped: at which round no layer could lose more, and why; None where all rounds were done.
    """

    dense: Metric
    levels: tuple[Level, ...]
    winner: int | None
    settings: Mapping[str, Any]
    validate: Metric
    stopped: str | None = None

    def json(self) -> dict[str, Any]:
        """The form of lottery.json."""
        levels = [
            {"left": v.left, "share": v.share, **{kind: getattr(v, kind).json() for kind in (*_KINDS, "validate")}}
            for v in self.levels
        ]
        head = {"schema": SCHEMA, "trimtab": VERSION, "settings": dict(self.settings)}
        dense = {"dense": self.dense.json(), "validate": self.validate.json()}
        return {**head, **dense, "levels": levels, "winner": self.winner, "stopped": self.stopped}


@dataclass(frozen=True)
class Between:
    """A training that does only a part of its steps, at the rates that the whole would have there.

    The data come in the order of a training that starts there, and momentum starts at nothing.

    Args:
        first: the steps that are taken as done.
        last: the step after which it ends.
    """

    first: int
    last: int

    def begin(self, training: Training, recipe: Recipe) -> State:
        """Count the steps before the part as done."""
        training.steps = self.first
        return {}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> None:
        """None."""
        return

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """End the training where the part ends."""
        if training.steps >= self.last:
            training.steps = recipe.steps

    def end(self, training: Training, state: State) -> None:
        """Nothing."""


def lottery(
    task: Task,
    *,
    rounds: int = 8,
    rate: float = 0.3,
    steps: int = 400,
    rewind: int = 0,
    train: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> Lottery:
    """Find winning tickets by iterative magnitude pruning with rewinding, beside random masks and other starts.

    The network gets new weights and is trained; the weights with the least abs(w) go; those that are left return to
    what they were after `rewind` steps and are trained again; and so on. Every training is kept in the folder, so
    that a run that is started again goes on; `lottery.json` and the sparsest winning ticket (`ticket/`) are written.
    The winner is chosen on the validation data and its score told on the test data. The rounds end where the next
    would leave a layer without weights.

    Args:
        task: with training data, a loss, a score, and data to score on.
        rounds: how often weights go.
        rate: the share of the weights left that goes each time.
        steps: of each training.
        rewind: to which step weights return; 0 is the start itself.
        train: settings of `Distil` for each training, such as `{"lr": 0.1}`; the labels alone teach.
        out: the folder; `runs/<task name>-lottery` by default.
        seed: of starts, random masks and trainings.
        progress: shows bars.

    Raises:
        InputError: a setting is out of range, or the task lacks what is needed.

    Source: Frankle & Carbin (2019), The Lottery Ticket Hypothesis, section 2 and strategy 1 of appendix B; Frankle et
    al. (2020), Linear Mode Connectivity and the Lottery Ticket Hypothesis, section 5 (rewinding to step k); eq. 6.
    """
    settings = {"rounds": rounds, "rate": rate, "steps": steps, "rewind": rewind, "seed": seed, "train": train or {}}
    recipe = _checked(task, settings)
    folder = Path(out) if out is not None else Path("runs") / f"{task.name}-lottery"
    prepared = prepare(task, Target(), Goal(max_drop=None), seed, None, progress)
    store = claim(folder, {"key": prepared.key, "task": task.name, "lottery": settings})
    prepared = replace(prepared, context=replace(prepared.context, store=store))
    draw, last = _begun(prepared, recipe, rewind)
    dense, bar = _score(prepared, last), _score(prepared, last, "validate")
    levels, wins, stopped = [], [], None
    for i in range(1, rounds + 1):
        progress("lottery", i - 1, rounds)
        left = round(draw.total * (1 - rate) ** i)
        try:
            keep = settled(magnitudes(last, draw.weights), {POOL: left}, Pattern())
        except InputError as error:
            stopped = f"round {i} of {rounds}: {error}"
            break
        level, last = _level(draw, last, keep)
        levels.append(level)
        if _no_worse(level.validate, bar):
            wins.append(i - 1)
            save(last, folder / "ticket")
    progress("lottery", rounds, rounds)
    about = {"task": task.name, **settings, "weights": draw.total}
    found = Lottery(dense, tuple(levels), max(wins, default=None), about, bar, stopped)
    write_json(folder / FILE, found.json())
    return found


@dataclass(frozen=True)
class _Draw:
    """What all tickets of a lottery have in common.

    Args:
        prepared: the task.
        recipe: of each training.
        rewind: the step at which `start` was kept.
        start: what weights return to.
        weights: those that may go.
    """

    prepared: Prepared
    recipe: Recipe
    rewind: int
    start: Graph
    weights: Sequence[Weight]

    @property
    def total(self) -> int:
        """How many weights may go."""
        return sum(self.start.tensors()[w.name].numel() for w in self.weights)


def _begun(prepared: Prepared, recipe: Recipe, rewind: int) -> tuple[_Draw, Graph]:
    """The start that weights return to with those that may go, and the whole network trained."""
    start = _initial(prepared, prepared.context.seed)
    weights, _ = chosen(start, (), prepared.context.task.keep, Pattern())
    if rewind:
        start = fit_network(start, prepared.context, replace(recipe, rules=(Between(0, rewind),)))
    return _Draw(prepared, recipe, rewind, start, weights), _trained(prepared.context, start, recipe, rewind)


def _initial(prepared: Prepared, seed: int) -> Graph:
    task = prepared.context.task
    return set_mode(capture(fresh(task.model, seed), task.example), False)


def _trained(context: Context, start: Graph, recipe: Recipe, first: int) -> Graph:
    """A network trained from a step on, its zeros held."""
    return fit_network(start, context, replace(recipe, rules=(Between(first, recipe.steps), HoldZeros(least=0.0))))


def _level(draw: _Draw, last: Graph, keep: Mapping[str, int]) -> tuple[Level, Graph]:
    """The three networks with so many of each weight's values left, and the ticket's as it is trained.

    Args:
        draw: of the lottery.
        last: the ticket before, trained: its magnitudes say which values stay.
        keep: how many, by weight.
    """
    prepared, start, weights = draw.prepared, draw.start, draw.weights
    left = sum(keep.values())
    best = masks(magnitudes(last, weights), keep, Pattern())
    others = masks(random_scores(start, weights, prepared.context.seed + left), keep, Pattern())
    other = _initial(prepared, prepared.context.seed + 1)

    def trained(graph: Graph, kept: Mapping[str, torch.Tensor], first: int) -> Graph:
        return _trained(prepared.context, _masked(graph, weights, kept), draw.recipe, first)

    ticket, random = trained(start, best, draw.rewind), trained(start, others, draw.rewind)
    anew = trained(other, best, 0)
    first, second, third = (_score(prepared, graph) for graph in (ticket, random, anew))
    return Level(left, left / draw.total, first, second, third, _score(prepared, ticket, "validate")), ticket


@torch.no_grad()
def _masked(graph: Graph, weights: Sequence[Weight], kept: Mapping[str, torch.Tensor]) -> Graph:
    result = graph.copy()
    tensors = result.tensors()
    for w in weights:
        tensors[w.name].masked_fill_(~weight_of(kept[w.name], tensors[w.name], w.axis), 0.0)
    return result


def _score(prepared: Prepared, graph: Graph, on: str = "test") -> Metric:
    found = scored(prepared, graph, on)
    assert found is not None  # _checked has seen to it
    return found


def _no_worse(ticket: Metric, dense: Metric) -> bool:
    return ticket.value >= dense.value if dense.direction == "up" else ticket.value <= dense.value


def _checked(task: Task, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of each training; InputError naming what is wrong."""
    for name, there in (
        ("train", task.train is not None),
        ("loss", task.loss is not None or task.step is not None),
        ("score", task.score is not None),
        ("test", task.test is not None or task.validate is not None),
    ):
        if not there:
            raise InputError(f"lottery: the task has no {name}", where=task.name, do=f"Give {name}= to the Task.")
    rounds, rate, steps, rewind = (settings[k] for k in ("rounds", "rate", "steps", "rewind"))
    for name, value, fits, expected in (
        ("rounds", rounds, 1 <= rounds <= 100, "1 to 100"),
        ("rate", rate, 0 < rate < 1, "a share above 0 and below 1"),
        ("steps", steps, steps >= 1, "1 or more"),
        ("rewind", rewind, 0 <= rewind < steps, f"0 to below {steps} steps"),
    ):
        if not fits or not math.isfinite(value):
            raise InputError(f"lottery: {name}", got=value, expected=expected)
    training: Distil = made(Distil, {"alpha": 1.0, "precision": "fp32", **settings["train"], "steps": steps})
    if training.alpha != 1:
        raise InputError("lottery: train: alpha", got=training.alpha, expected="1: a ticket has no teacher")
    if training.distillation().asks:
        raise InputError("lottery: train", got="features or relations", expected="none: a ticket has no teacher")
    return training.recipe()
