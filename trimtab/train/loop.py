"""The training loop: one for fine-tuning, recovery, distillation and the control."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

import torch

from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Batch
from trimtab.graph.model import Graph
from trimtab.train.answers import Answers, answers_for
from trimtab.train.checkpoint import held_interrupt, identity, key, restore, save
from trimtab.train.data import stream
from trimtab.train.precision import concrete
from trimtab.train.recipe import Recipe
from trimtab.train.step import Training, advance, begin, teachers_of

CHECKPOINT_SECONDS = 20.0
"""A killed training loses at most about this much of its work."""

_MARGIN = 0.95
"""Share of a time budget that is planned for; the rest covers start and checkpoints."""


def fit_network(graph: Graph, context: Context, recipe: Recipe) -> Graph:
    """Train a network and return it with its new weights, in evaluation mode; the argument stays as it was.

    The loss is alpha task loss + (1 - alpha) distillation loss (Hinton et al. 2015), or one of the
    two, and what is compared beside. With a store, the state is kept every 20 s and at Ctrl-C, a call with
    the same arguments goes on from there, bit for bit, and a finished training is not done again.

    Args:
        graph: the network.
        context: its task's `train` data, loss or step; the teacher, device, store and progress.
        recipe: how; see `steps_for` for turning seconds into its `steps`.

    Raises:
        InputError: a setting is out of range, or the data do not fit.
        DivergedError: the loss became NaN or infinite.
    """
    if recipe.check().steps == 0:
        return graph.copy()
    recipe = concrete(graph, context, recipe)
    store, name = context.store, ""
    if store is not None:
        name = key(graph, context, recipe)
        if store.get(name) is not None:
            return _with(graph, store.tensors(name))
    training = begin(graph, context, recipe)
    if store is not None:
        restore(training, store, f"{name}-unfinished")
        training.answers = _answers(training, context, recipe)
    with torch.random.fork_rng():
        _run(training, context, recipe, f"{name}-unfinished")
    for rule, state in zip(recipe.rules, training.states, strict=True):
        rule.end(training, state)
    result = training.tensors | training.average
    for answers in training.answers:
        answers.keep()
    if store is not None:
        store.put(name, {"training": "finished", "steps": training.steps}, result)
        store.drop(f"{name}-unfinished")
    return _with(graph, result)


def _run(training: Training, context: Context, recipe: Recipe, name: str) -> None:
    """Step until the recipe's end, with checkpoints, in place."""

    def keep() -> None:
        if context.store is not None:
            save(training, context.store, name)
        for answers in training.answers:
            answers.keep()

    kept = time.monotonic()
    with held_interrupt() as held:
        for epoch, index, batch in stream(_train_data(context), recipe.seed, training.position):
            if training.steps >= recipe.steps:
                return
            training.position = (epoch, index)
            advance(training, batch, context.task, recipe)
            training.position = (epoch, index + 1)
            if held.frames or time.monotonic() - kept > CHECKPOINT_SECONDS:
                keep()
                kept = time.monotonic()
            held.release()
            try:
                context.progress("train", training.steps, recipe.steps)
            except KeyboardInterrupt:
                keep()
                raise


def _answers(training: Training, context: Context, recipe: Recipe) -> tuple[Answers, ...]:
    found = [answers_for(context, recipe, identity(each)) for each in teachers_of(context)] if training.teachers else []
    return tuple(each for each in found if each is not None)


def steps_for(seconds: float, graph: Graph, context: Context, recipe: Recipe) -> int:
    """How many steps of this recipe fit into a time, measured on a few; at least 1.

    The answer differs from call to call: store it before it is used. The teacher is asked each time
    here, so that a training which finds its answers in the store ends early.
    """
    recipe = replace(concrete(graph, context, recipe.check()), lr=0.0)
    training = begin(graph, context, recipe)
    times: list[float] = []
    with torch.random.fork_rng():
        started = before = time.perf_counter()
        for _, _, batch in stream(_train_data(context), recipe.seed):
            advance(training, batch, context.task, recipe)
            now = time.perf_counter()
            times.append(now - before)
            before = now
            if len(times) >= 5 and now - started > min(8.0, 0.02 * seconds):
                break
    # The first two steps allocate and choose kernels; a burst of other work on the machine is not the pace.
    return max(int(_MARGIN * seconds / median(times[2:])), 1)


def _train_data(context: Context) -> Iterable[Batch]:
    if context.train is None:
        raise InputError("train: the task has no training data", do="Give train= to the Task.")
    return context.train


def _with(graph: Graph, tensors: dict[str, torch.Tensor]) -> Graph:
    result = graph.copy()
    with torch.no_grad():
        for name, tensor in result.tensors().items():
            tensor.copy_(tensors[name])
    return result
