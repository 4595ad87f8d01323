"""Scores: how much each unit of a coupled group matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.compress.prune.activations import ACTIVATION_SCORES, by_activation
from trimtab.compress.prune.gates import GATE_SCORES, by_gate
from trimtab.compress.prune.gradients import gradients
from trimtab.compress.prune.magnitude import lamp, weight_score
from trimtab.compress.prune.units import per_unit
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import digest
from trimtab.graph.coupling import Group, Member
from trimtab.graph.model import Graph

ScoreName = Literal[
    "l1",
    "l2",
    "fpgm",
    "lamp",
    "batch_norm",
    "taylor",
    "taylor_squared",
    "eq9",
    "taylor_gate",
    "fisher",
    "apoz",
    "thinet",
    "random",
]
SCORES: tuple[str, ...] = get_args(ScoreName)
GRADIENT_SCORES = ("taylor", "taylor_squared", "eq9")
COMPARABLE = (*GRADIENT_SCORES, *GATE_SCORES, *ACTIVATION_SCORES, "batch_norm", "lamp", "random")
"""Scores in one currency for all groups: a change of the loss, a share of values, a scale."""
_TINY = 1e-30


def unit_scores(
    graph: Graph, groups: Sequence[Group], score: ScoreName, context: Context, across: bool = False
) -> dict[str, Tensor]:
    """The score of each unit of each group, float64 [size]; the units with the least matter least.

    From weights: each weight w that a group reaches, in the layers that make its channels and in those
    that read them, is scored over its elements that go with the unit.

    - `l1`: sum abs(w) (Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1);
    - `l2`: sqrt(sum w^2) (He et al. 2018, Soft Filter Pruning, section 3.2);
    - `fpgm`: sum over the other units j of ||w_i - w_j||: those nearest to the geometric median can be
      had from the others (He et al. 2019, Filter Pruning via Geometric Median, eq. 4 and 9);
    - `lamp`: q_i / (sum of q_j over units with q_j >= q_i), q the squares of `l2` (Lee et al. 2021,
      Layer-Adaptive Sparsity for the Magnitude-Based Pruning, eq. 3; units in place of weights is ours);
    - `batch_norm`: abs(gamma) of the group's batch norms (Liu et al. 2017, Network Slimming, section 3);
    - `taylor`: abs(sum w g), mean over batches (Molchanov et al. 2017, Pruning Convolutional Neural
      Networks for Resource Efficient Inference, section 2.2; on weights as Molchanov et al. 2019);
    - `taylor_squared`: (sum w g)^2, mean over batches (Molchanov et al. 2019, Importance Estimation for
      Neural Network Pruning, eq. 8);
    - `eq9`: sum abs(w) abs(g), mean over batches (EQUATIONS 9).

    From values where the units are read (behind norm and activation); see `gates` and `activations`:

    - `taylor_gate`: abs(sum a da), mean over samples (Molchanov et al. 2017, eq. 8);
    - `fisher`: (sum a da)^2 / 2, mean over samples: the empirical Fisher information of a gate on the
      unit (Theis et al. 2018, Faster Gaze Prediction with Dense Networks and Fisher Pruning, eq. 8 and 9);
    - `apoz`: 1 - average percentage of zeros (Hu et al. 2016, Network Trimming, eq. 1);
    - `thinet`: the error that the layers which read the units make when it and those before it are gone,
      in the order of the greedy choice (Luo et al. 2017, ThiNet, eq. 6 and algorithm 1);
    - `random`: uniform, seeded by the context and the group's name.

    Weights of unlike size then count alike: each weight's scores are divided by their mean over the
    group's units, and a unit's score is the mean over weights. So scores rank units within a group,
    and their mean in each group is 1.

    Args:
        graph: the network.
        groups: of it.
        score: which.
        context: for `taylor`, `taylor_squared`, `eq9`, `taylor_gate` and `fisher` a loss and labelled
            `calibrate` or `train` data; for `apoz` and `thinet` inputs.
        across: scores to compare between groups: those of `COMPARABLE` as they are, summed over a unit's
            weights where they are changes of the loss; the others with mean 1 in each group.

    Raises:
        InputError: the score needs data, labels, a loss, a batch norm or zeros that are not there.
    """
    if not groups:
        return {}
    parts = _parts(graph, groups, score, context)
    if across and score in GRADIENT_SCORES:
        return {name: torch.stack(each).sum(0) for name, each in parts.items()}
    if across and score in COMPARABLE:
        return {name: torch.stack(each).mean(0) for name, each in parts.items()}
    return {name: _mean(each) for name, each in parts.items()}


def _parts(graph: Graph, groups: Sequence[Group], score: str, context: Context) -> dict[str, list[Tensor]]:
    """For each group the scores from each of its weights, or one for all."""
    if score == "random":
        return {g.name: [_random(g, context.seed)] for g in groups}
    if score in GATE_SCORES:
        return {name: [value] for name, value in by_gate(graph, groups, score, context).items()}
    if score in ACTIVATION_SCORES:
        return {name: [value] for name, value in by_activation(graph, groups, score, context).items()}
    members = {g.name: scored_members(graph, g, score) for g in groups}
    if score in GRADIENT_SCORES:
        return _by_gradient(graph, groups, members, score, context)
    tensors = graph.tensors()
    if score == "lamp":
        squares = {n: _mean([weight_score(tensors, m, "squares") for m in each]) for n, each in members.items()}
        return {name: [lamp(value)] for name, value in squares.items()}
    return {name: [weight_score(tensors, m, score) for m in each] for name, each in members.items()}


def _random(group: Group, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(digest("random", seed, group.name)[:8], 16))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def scored_members(graph: Graph, group: Group, score: str) -> list[Member]:
    """The dimensions whose elements are scored.

    Raises:
        InputError: the group has none.
    """
    parameters = dict(graph.net.named_parameters())
    if score == "batch_norm":
        norms = set(scales(graph))
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


def scales(graph: Graph) -> tuple[str, ...]:
    """The names of the scales (gamma) of a graph's batch norms."""
    found = (n.args[1] for n in graph.nodes(torch.ops.aten.batch_norm.default))
    return tuple(dict.fromkeys(str(n.target) for n in found if n is not None))  # type: ignore[union-attr]


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
    count = 0
    for gradient in gradients(graph, context, score):
        count += 1
        for name, parts in sums.items():
            for part, member in zip(parts, members[name], strict=True):
                product = weights[member.parameter] * gradient[member.parameter].double()
                if score == "eq9":
                    part += per_unit(product.abs(), member)
                else:
                    part += per_unit(product, member).abs() ** (2 if score == "taylor_squared" else 1)
    return {name: [part / count for part in parts] for name, parts in sums.items()}
