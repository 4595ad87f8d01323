"""Training: the state of a network under training, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.errors import InputError, TrimtabError
from trimtab.core.store import digest
from trimtab.core.task import Batch, Task
from trimtab.graph.fuse import fold_batch_norm
from trimtab.graph.model import Graph, Outputs
from trimtab.graph.modes import set_mode
from trimtab.train.answers import Answers
from trimtab.train.data import checked, tensors
from trimtab.train.distil import distillation_loss
from trimtab.train.features import feature_loss, places, tapped
from trimtab.train.network import Learner
from trimtab.train.recipe import Distillation, Recipe, rate
from trimtab.train.rule import State


@dataclass
class Training:
    """A network under training: the one thing here that changes in place.

    Args:
        tensors: parameters and buffers under the names of the graph that was given.
        graph: an own copy, in training mode.
        network: the same, as the loss calls it.
        teacher: evaluating, its norms folded for speed; None where nothing is learnt from it.
        optimiser: of the graph's parameters.
        average: the moving average of floating-point tensors by name; empty without `ema`.
        steps: how many are done.
        position: `(epoch, index)` of the next batch.
        answers: where the teacher's answers are kept; None asks each time.
        taps: the features of the last call, of the network and of its teacher; None where none are compared.
        states: what each of the recipe's rules remembers.
    """

    tensors: dict[str, Tensor]
    graph: Graph
    network: Learner
    teacher: Learner | None
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    steps: int = 0
    position: tuple[int, int] = (0, 0)
    answers: Answers | None = None
    taps: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None
    states: list[State] = field(default_factory=list)


def begin(graph: Graph, context: Context, recipe: Recipe) -> Training:
    """A training that has done no step; the recipe's precision and layout are concrete.

    Raises:
        InputError: there is neither a loss nor a teacher, or nothing to train.
    """
    task, device = context.task, context.device
    labelled = task.loss is not None or task.step is not None
    if not labelled and context.teacher is None:
        raise InputError("train: the task has no loss and there is no teacher", do="Give loss= or step= to the Task.")
    if recipe.distil is not None and recipe.distil.alpha < 1 and context.teacher is None:
        raise InputError("train: distil: there is no teacher to learn from", do="Give teacher= to the Context.")
    distils = not labelled or (recipe.distil is not None and recipe.distil.alpha < 1)
    own = _prepared(graph, device, recipe, training=True)
    held = dict(own.tensors())  # before the network gives tied ones their further names
    teacher, taps = None, None
    if distils:
        taught = _prepared(fold_batch_norm(context.teacher), device, recipe, training=False)
        names = places(own, taught) if recipe.distil is not None and recipe.distil.features > 0 else ()
        if names:
            taps = tapped(own.net, names), tapped(taught.net, names)
        teacher = _learner(taught, recipe).requires_grad_(False)
    training = Training(
        tensors=held,
        graph=own,
        network=_learner(own, recipe),
        teacher=teacher,
        optimiser=_optimiser(own, recipe),
        average={},
        taps=taps,
    )
    training.states += [rule.begin(training, recipe) for rule in recipe.rules]
    if recipe.ema is not None:
        training.average |= {k: v.detach().clone() for k, v in held.items() if v.dtype.is_floating_point}
    return training


def _prepared(graph: Graph, device: str, recipe: Recipe, training: bool) -> Graph:
    own = set_mode(graph.copy() if graph.device == torch.device(device) else graph.to(device), training)
    if recipe.channels_last:
        own.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return own


def _learner(graph: Graph, recipe: Recipe) -> Learner:
    return Learner(graph, recipe.precision == "bf16", bool(recipe.channels_last))


def _optimiser(graph: Graph, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in graph.net.parameters() if p.requires_grad]
    if not trained:
        raise InputError("train: the network has no parameter that requires a gradient")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def advance(training: Training, batch: Batch, task: Task, recipe: Recipe) -> None:
    """One step on one batch. What it draws (dropout) depends on (seed, step) alone.

    Raises:
        InputError: the batch does not fit.
        TrimtabError: the loss is NaN or infinite; the weights are then those before the step.
    """
    torch.manual_seed(int(digest("step", recipe.seed, training.steps)[:8], 16))
    lr = rate(recipe, training.steps)
    for group in training.optimiser.param_groups:
        group["lr"] = lr
    loss = objective(training, batch, task, recipe)
    for rule, state in zip(recipe.rules, training.states, strict=True):
        penalty = rule.penalty(training, state, recipe)
        loss = loss if penalty is None else loss + penalty
    if not math.isfinite(float(loss.detach())):
        raise TrimtabError(
            "train: the loss is not finite",
            where=f"step {training.steps + 1} of {recipe.steps}, lr {lr:.3g}",
            got=float(loss.detach()),
            do=f"Lower lr below {recipe.lr:g}, set clip=1.0, or look for log(0) and 0/0 in the loss.",
        )
    training.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if recipe.clip is not None:
        torch.nn.utils.clip_grad_norm_(training.graph.net.parameters(), recipe.clip)
    training.optimiser.step()
    training.steps += 1
    for rule, state in zip(recipe.rules, training.states, strict=True):
        rule.after(training, state, recipe)
    if recipe.ema is not None:
        _average(training, min(recipe.ema, (1 + training.steps) / (10 + training.steps)))


@torch.no_grad()
def _average(training: Training, decay: float) -> None:
    for name, value in training.tensors.items():
        if name in training.average:
            training.average[name].lerp_(value, 1 - decay)


def objective(training: Training, batch: Batch, task: Task, recipe: Recipe) -> Tensor:
    """alpha task loss + (1 - alpha) distillation loss; one of the two where the other is not there.

    Raises:
        InputError: the batch does not fit the graph, or has no labels though the loss needs them.
    """
    placed = moved(batch, training.graph.device)
    inputs, target = checked(placed, training.graph, "train")
    alpha = recipe.distil.alpha if recipe.distil is not None else 1.0
    hard: Tensor | None = None
    if task.step is not None and alpha > 0:
        hard = task.step(training.network, placed)
    else:
        outputs = training.network(*inputs)
        hard = task_loss(task, outputs, target, "train") if task.loss is not None and alpha > 0 else None
    if isinstance(hard, Tensor) and hard.ndim == 0 and training.teacher is None:
        return hard
    if hard is not None and (not isinstance(hard, Tensor) or hard.ndim):
        got = f"shape {list(hard.shape)}" if isinstance(hard, Tensor) else type(hard).__name__
        raise InputError("train: the task's loss", got=got, expected="a tensor with no dimension", do="Take its mean.")
    if training.teacher is None or training.network.last is None:
        raise InputError("train: the task's step did not call the network that it was given")
    args, kwargs, outputs = training.network.last
    settings = recipe.distil or Distillation()
    soft = distillation_loss(outputs, _taught(training, args, kwargs), target, settings)
    loss = soft if hard is None else alpha * hard + (1 - alpha) * soft
    if training.taps is None:
        return loss
    mine, theirs = training.taps
    return loss + settings.features * feature_loss(mine, theirs)


@torch.no_grad()
def _taught(training: Training, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    teacher, answers = training.teacher, training.answers
    if teacher is None or answers is None or training.taps is not None:  # features are too large to keep
        return None if teacher is None else teacher(*args, **kwargs)
    return answers.to(list(tensors([args, kwargs])), training.position[0], lambda: teacher(*args, **kwargs))


def task_loss(task: Task, outputs: Any, target: Any, where: str) -> Any:
    """The task's loss of outputs against the labels of a batch."""
    if task.loss is None:
        raise InputError("train: the task has no loss", do="Give loss= to the Task.")
    if target is None:
        raise InputError(
            f"data: {where}: a batch has no labels, and the task's loss needs them",
            got="inputs only",
            expected="(inputs, target)",
            do="Yield labels too, or leave loss= out to learn from the original network alone.",
        )
    return task.loss(outputs, target)


def moved(value: Any, device: torch.device | str) -> Any:
    """Tensors in containers, on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        members = {k: moved(v, device) for k, v in value.items()}
        return Outputs(members) if isinstance(value, Outputs) else members
    return type(value)(moved(v, device) for v in value) if type(value) in (tuple, list) else value
