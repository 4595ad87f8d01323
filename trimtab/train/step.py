"""Training: the state of a network under training, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.errors import DivergedError, InputError
from trimtab.core.store import digest
from trimtab.core.task import Batch, Task
from trimtab.graph.fuse import fold_batch_norm
from trimtab.graph.model import Graph, Outputs
from trimtab.graph.modes import set_mode
from trimtab.train.answers import Answers
from trimtab.train.compared import Chosen, Compared, choose, compare, compared_loss, foldable
from trimtab.train.data import checked, tensors
from trimtab.train.distil import taught_loss
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
        teachers: evaluating, their norms folded for speed; none where nothing is learnt from them.
        optimiser: of the graph's parameters.
        average: the moving average of floating-point tensors by name; empty without `ema`.
        steps: how many are done.
        position: `(epoch, index)` of the next batch.
        answers: where each teacher's answers are kept; none asks each time.
        compared: what of the network and the first teacher is compared beside outputs; None for nothing.
        states: what each of the recipe's rules remembers.
    """

    tensors: dict[str, Tensor]
    graph: Graph
    network: Learner
    teachers: tuple[Learner, ...]
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    steps: int = 0
    position: tuple[int, int] = (0, 0)
    answers: tuple[Answers, ...] = ()
    compared: Compared | None = None
    states: list[State] = field(default_factory=list)

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors, and the learned maps of what is compared: all that the optimiser may change, by name."""
        maps = self.compared.maps if self.compared is not None else {}
        return self.tensors | {f"map/{name}": value for name, value in maps.items()}


def begin(graph: Graph, context: Context, recipe: Recipe) -> Training:
    """A training that has done no step; the recipe's precision and layout are concrete.

    Raises:
        InputError: there is neither a loss nor a teacher, or nothing to train.
    """
    task, device = context.task, context.device
    labelled = task.loss is not None or task.step is not None
    if not labelled and context.teacher is None:
        raise InputError("train: the task has no loss and there is no teacher", do="Give loss= or step= to the Task.")
    if recipe.distil is not None and recipe.distil.asks and context.teacher is None:
        raise InputError("train: distil: there is no teacher to learn from", do="Give teacher= to the Context.")
    own = _prepared(graph, device, recipe, training=True)
    held = dict(own.tensors())  # before the network gives tied ones their further names
    teachers: tuple[Learner, ...] = ()
    compared: Compared | None = None
    if not labelled or (recipe.distil is not None and recipe.distil.asks):
        teachers, compared = _teachers(own, context, recipe)
    training = Training(
        tensors=held,
        graph=own,
        network=_learner(own, recipe),
        teachers=teachers,
        optimiser=_optimiser(own, compared, recipe),
        average={},
        compared=compared,
    )
    training.states += [rule.begin(training, recipe) for rule in recipe.rules]
    if recipe.ema is not None:
        training.average |= {k: v.detach().clone() for k, v in held.items() if v.dtype.is_floating_point}
    return training


def teachers_of(context: Context) -> tuple[Graph, ...]:
    """The teachers of a context, in the order of their weights."""
    return (*([] if context.teacher is None else [context.teacher]), *context.teachers)


def _teachers(own: Graph, context: Context, recipe: Recipe) -> tuple[tuple[Learner, ...], Compared | None]:
    """The teachers as they run, and what is compared with the first one."""
    first, *others = teachers_of(context)
    distil = recipe.distil or Distillation()
    chosen = choose(own, first, distil) if distil.inner else Chosen()
    folded = fold_batch_norm(first)
    run = folded if foldable(chosen, folded) else first
    taught = _prepared(run, context.device, recipe, training=False)
    compared = compare(own, taught, chosen, distil, recipe.seed)
    rest = [_prepared(fold_batch_norm(each), context.device, recipe, training=False) for each in others]
    learners = [_learner(each, recipe).requires_grad_(False) for each in (taught, *rest)]
    return tuple(learners), compared


def _prepared(graph: Graph, device: str, recipe: Recipe, training: bool) -> Graph:
    own = set_mode(graph.copy() if graph.device == torch.device(device) else graph.to(device), training)
    if recipe.channels_last:
        own.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return own


def _learner(graph: Graph, recipe: Recipe) -> Learner:
    return Learner(graph, recipe.precision == "bf16", bool(recipe.channels_last))


def _optimiser(graph: Graph, compared: Compared | None, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [p for p in graph.net.parameters() if p.requires_grad]
    if not trained:
        raise InputError("train: the network has no parameter that requires a gradient")
    trained += compared.maps.values() if compared is not None else ()
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
        DivergedError: the loss is NaN or infinite; the weights are then those before the step.
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
        raise DivergedError(
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
    """alpha task loss + (1 - alpha) distillation loss, or one of the two, and what is compared beside.

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
    if isinstance(hard, Tensor) and hard.ndim == 0 and not training.teachers:
        return hard
    if hard is not None and (not isinstance(hard, Tensor) or hard.ndim):
        got = f"shape {list(hard.shape)}" if isinstance(hard, Tensor) else type(hard).__name__
        raise InputError("train: the task's loss", got=got, expected="a tensor with no dimension", do="Take its mean.")
    if not training.teachers or training.network.last is None:
        raise InputError("train: the task's step did not call the network that it was given")
    return _taught(training, hard, target, recipe.distil or Distillation())


def _taught(training: Training, hard: Tensor | None, target: Any, settings: Distillation) -> Tensor:
    """The loss where there are teachers, of the network's last call."""
    assert training.network.last is not None  # the objective has seen to it
    args, kwargs, outputs = training.network.last
    count = len(training.teachers) if hard is None or settings.alpha < 1 else 1
    answers = [_asked(training, i, args, kwargs) for i in range(count)]
    if hard is None:
        loss = taught_loss(outputs, answers, target, settings)
    elif settings.alpha < 1:
        loss = settings.alpha * hard + (1 - settings.alpha) * taught_loss(outputs, answers, target, settings)
    else:
        loss = hard
    return loss if training.compared is None else loss + compared_loss(training.compared, settings)


@torch.no_grad()
def _asked(training: Training, which: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    teacher = training.teachers[which]
    tapped = training.compared is not None and which == 0  # what lies between is too large to keep
    if not training.answers or tapped:
        return teacher(*args, **kwargs)
    inputs = list(tensors([args, kwargs]))
    return training.answers[which].to(inputs, training.position[0], lambda: teacher(*args, **kwargs))


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
