"""Gradients of the task's loss, one batch at a time, and the data that scores are taken on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Batch, Task
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.data import checked
from trimtab.train.network import Learner
from trimtab.train.step import task_loss

BATCHES = 16
"""Batches that a score is taken on, at most."""
Gradients = Mapping[str, Tensor]
_OTHERS = "score='l1', 'l2' or 'batch_norm'"


def gradients(graph: Graph, context: Context, what: str) -> Iterator[Gradients]:
    """The gradient of the task's loss in each parameter, one batch at a time, evaluating; at most 16 batches.

    Args:
        graph: the network; it is not changed.
        context: its task's loss or step, and labelled `calibrate` data, or else `train` data.
        what: for the message.

    Raises:
        InputError: there is no loss, or no labelled data.
    """
    own = set_mode(graph.copy(), False)
    parameters = dict(own.net.named_parameters())
    for loss, _ in losses(own, context, what):
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), found, strict=True)
        }


def losses(own: Graph, context: Context, what: str) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """The task's loss of a network and the inputs of the batch, one batch at a time.

    Args:
        own: evaluating; it may be changed between batches.
        context: as for `gradients`.
        what: for the message.

    Raises:
        InputError: there is no loss, or no labelled data.
    """
    task = context.task
    if task.loss is None and task.step is None:
        raise InputError(f"Prune: score {what} needs a loss", do=f"Give loss= to the Task, or use {_OTHERS}.")
    network = Learner(own)
    for batch, where in _labelled(own, context, what):
        with torch.enable_grad():
            yield _loss(network, task, batch, own, where), checked(batch, own, where)[0]


def inputs(graph: Graph, context: Context, what: str) -> list[tuple[Tensor, ...]]:
    """At most 16 batches of inputs, without labels: those to calibrate on, else the first of the training data.

    Raises:
        InputError: there are no data.
    """
    found = [checked(batch, graph, "calibrate")[0] for batch in context.calibrate[:BATCHES]]
    if not found:
        found = [checked(batch, graph, "train")[0] for batch in _first(context)]
    if not found:
        raise InputError(
            f"Prune: score {what} needs data",
            got="neither calibrate nor train",
            do=f"Give calibrate= to the Task (no labels needed), or use {_OTHERS}.",
        )
    return found


def _loss(network: Learner, task: Task, batch: Batch, graph: Graph, where: str) -> Tensor:
    given, target = checked(batch, graph, where)
    if task.loss is None and task.step is not None:
        return task.step(network, batch)
    loss: Tensor = task_loss(task, network(*given), target, where)
    return loss


def _labelled(graph: Graph, context: Context, what: str) -> Iterator[tuple[Batch, str]]:
    """Batches with labels: those to calibrate on if they have them, else the first of the training data."""
    if context.calibrate and (
        context.task.loss is None or checked(context.calibrate[0], graph, "calibrate")[1] is not None
    ):
        yield from ((batch, "calibrate") for batch in context.calibrate[:BATCHES])
        return
    count = 0
    for batch in _first(context):
        count += 1
        yield batch, "train"
    if not count:
        raise InputError(
            f"Prune: score {what} needs labelled data",
            got="neither train nor calibrate with labels",
            do=f"Give train= to the Task, or use {_OTHERS}.",
        )


def _first(context: Context) -> Iterator[Batch]:
    """The first batches of the training data in the order that the seed gives."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        for count, batch in enumerate(context.train if context.train is not None else ()):
            if count == BATCHES:
                return
            yield batch
