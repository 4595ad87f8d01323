"""Scores: how much each unit of a coupled group matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.core.task import Batch, Task
from trimtab.graph.coupling import Group, Member
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.train.data import checked
from trimtab.train.network import Learner
from trimtab.train.step import task_loss

ScoreName = Literal["l1", "l2", "taylor", "eq9", "batch_norm", "random"]
SCORES: tuple[str, ...] = get_args(ScoreName)
GRADIENT_SCORES = ("taylor", "eq9")
_BATCHES = 16
_TINY = 1e-30
Gradients = Mapping[str, Tensor]


def unit_scores(graph: Graph, groups: Sequence[Group], score: ScoreName, context: Context) -> dict[str, Tensor]:
    """The score of each unit of each group, float64 [size]; the units with the least matter least.

    Each weight w that a group reaches, in the layers that make its channels and in those that read
    them, is scored over its elements that go with the unit:

    - `l1`: sum abs(w) (Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1);
    - `l2`: sqrt(sum w^2) (He et al. 2018, Soft Filter Pruning, section 3.2);
    - `taylor`: abs(sum w g), mean over batches (Molchanov et al. 2017, Pruning Convolutional Neural
      Networks for Resource Efficient Inference, section 2.2; on weights as Molchanov et al. 2019);
    - `eq9`: sum abs(w) abs(g), mean over batches (EQUATIONS 9);
    - `batch_norm`: abs(gamma) of the group's batch norms (Liu et al. 2017, Network Slimming, section 3);
    - `random`: uniform, seeded by the context and the group's name.

    Weights of unlike size then count alike: each weight's scores are divided by their mean over the
    group's units, and a unit's score is the mean over weights. So scores rank units within a group,
    and their mean in each group is 1.

    Args:
        graph: the network.
        groups: of it.
        score: which.
        context: for `taylor` and `eq9`, a loss and labelled `calibrate` or `train` data.

    Raises:
        InputError: the score needs data, labels, a loss or a batch norm that is not there.
    """
    if score == "random":
        return {g.name: _random(g, context.seed) for g in groups}
    members = {g.name: _members(graph, g, score) for g in groups}
    if score in GRADIENT_SCORES:
        sums = _by_gradient(graph, groups, members, score, context)
    else:
        tensors = graph.tensors()
        sums = {
            g.name: [_per_unit(_element(tensors[m.parameter], score), m).pow(_power(score)) for m in members[g.name]]
            for g in groups
        }
    return {name: _mean(parts) for name, parts in sums.items()}


def _random(group: Group, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(digest("random", seed, group.name)[:8], 16))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def _power(score: str) -> float:
    return 0.5 if score == "l2" else 1.0


def _element(weight: Tensor, score: str) -> Tensor:
    value = weight.detach().double()
    return value.square() if score == "l2" else value.abs()


def _members(graph: Graph, group: Group, score: str) -> list[Member]:
    """The dimensions whose elements are scored."""
    parameters = dict(graph.net.named_parameters())
    if score == "batch_norm":
        norms = {str(n.args[1].target) for n in graph.nodes(torch.ops.aten.batch_norm.default) if n.args[1] is not None}  # type: ignore[union-attr]
        found = [m for m in group.members if m.parameter in norms]
        lack = "a batch norm with a scale"
    else:
        found = [m for m in group.members if m.parameter in parameters and parameters[m.parameter].ndim > 1]
        lack = "a weight"
    if not found:
        raise InputError(
            f"Prune: score {score}",
            where=group.name,
            got=f"a group without {lack}",
            do="Choose another score or fix it.",
        )
    return found


def _per_unit(elements: Tensor, member: Member) -> Tensor:
    """Sum of the elements that go with each unit: [size]."""
    others = [d for d in range(elements.ndim) if d != member.dim]
    along = elements.sum(others) if others else elements  # [length of the dimension]
    counts = [len(i) for i in member.indices]
    flat = torch.tensor([i for unit in member.indices for i in unit], dtype=torch.int64)
    unit = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return torch.zeros(len(counts), dtype=torch.float64).index_add(0, unit, along.double()[flat])


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part / part.mean().clamp_min(_TINY)
    return total / len(parts)


def _by_gradient(
    graph: Graph, groups: Sequence[Group], members: Mapping[str, Sequence[Member]], score: str, context: Context
) -> dict[str, list[Tensor]]:
    weights = {name: p.detach().double() for name, p in graph.net.named_parameters()}
    sums = {g.name: [torch.zeros(g.size, dtype=torch.float64) for _ in members[g.name]] for g in groups}
    for gradient in gradients(graph, context, score):
        for name, parts in sums.items():
            for part, member in zip(parts, members[name], strict=True):
                product = weights[member.parameter] * gradient[member.parameter].double()
                part += _per_unit(product, member).abs() if score == "taylor" else _per_unit(product.abs(), member)
    return sums


def gradients(graph: Graph, context: Context, what: str) -> Iterator[Gradients]:
    """The gradient of the task's loss in each parameter, one batch at a time, evaluating; at most 16 batches.

    Args:
        graph: the network; it is not changed.
        context: its task's loss or step, and labelled `calibrate` data, or else `train` data.
        what: for the message.

    Raises:
        InputError: there is no loss, or no labelled data.
    """
    task = context.task
    if task.loss is None and task.step is None:
        raise InputError(f"Prune: score {what} needs a loss", do=f"Give loss= to the Task, or use {_OTHERS}.")
    own = set_mode(graph.copy(), False)
    network = Learner(own)
    parameters = dict(own.net.named_parameters())
    for batch, where in _labelled(own, context, what):
        with torch.enable_grad():
            loss = _loss(network, task, batch, own, where)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), found, strict=True)
        }


_OTHERS = "score='l1', 'l2' or 'batch_norm'"


def _loss(network: Learner, task: Task, batch: Batch, graph: Graph, where: str) -> Tensor:
    inputs, target = checked(batch, graph, where)
    if task.loss is None and task.step is not None:
        return task.step(network, batch)
    loss: Tensor = task_loss(task, network(*inputs), target, where)
    return loss


def _labelled(graph: Graph, context: Context, what: str) -> Iterator[tuple[Batch, str]]:
    """Batches with labels: those to calibrate on if they have them, else the first of the training data."""
    if context.calibrate and (
        context.task.loss is None or checked(context.calibrate[0], graph, "calibrate")[1] is not None
    ):
        yield from ((batch, "calibrate") for batch in context.calibrate[:_BATCHES])
        return
    count = 0
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        for batch in context.train if context.train is not None else ():
            if count == _BATCHES:
                return
            count += 1
            yield batch, "train"
    if not count:
        raise InputError(
            f"Prune: score {what} needs labelled data",
            got="neither train nor calibrate with labels",
            do=f"Give train= to the Task, or use {_OTHERS}.",
        )
