"""Teach: heads that learn from the end of the very network that they read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.exits.heads import NAME, Confidence, Head, Selected, classes, key
from trimtab.compress.exits.thresholds import NEVER
from trimtab.core.context import Context
from trimtab.core.task import Batch
from trimtab.graph.chain import Link
from trimtab.graph.choices import opened
from trimtab.graph.fuse import fold_batch_norm
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.splice import spliced
from trimtab.train.data import checked
from trimtab.train.distil import distillation_loss
from trimtab.train.features import tapped
from trimtab.train.loop import fit_network
from trimtab.train.precision import concrete
from trimtab.train.recipe import Distillation, Recipe
from trimtab.train.rule import State
from trimtab.train.step import Training

aten = torch.ops.aten


@dataclass(frozen=True)
class LearnFromEnd:
    """Heads learn what the network answers at its end, which does not learn from them.

    L = weight sum_k T^2 KL(softmax(z / T) || softmax(z_k / T))

    Args:
        answers: names of the nodes of the heads' logits z_k.
        last: that of the network's own logits z.
        temperature: T.
        weight: of the sum.

    Source: Zhang et al. (2019), Be Your Own Teacher, equation 4's second term; labels are not used.
    """

    answers: tuple[str, ...]
    last: str
    temperature: float
    weight: float = 1.0

    def begin(self, training: Training, recipe: Recipe) -> State:
        """The network keeps the logits of each call."""
        net = training.graph.net
        net.meta[NAME] = tapped(net, (*self.answers, self.last))
        return {}

    def penalty(self, training: Training, state: State, recipe: Recipe) -> Tensor | None:
        """The loss above, of the last call."""
        seen: Mapping[str, Tensor] = training.graph.net.meta[NAME]
        end = seen[self.last].detach().float()
        mine = {name: seen[name].float() for name in self.answers}
        settings = Distillation(self.temperature, match="classes")
        return self.weight * distillation_loss(mine, dict.fromkeys(mine, end), None, settings)

    def after(self, training: Training, state: State, recipe: Recipe) -> None:
        """Nothing."""

    def end(self, training: Training, state: State) -> None:
        """Nothing."""


def with_exits(
    graph: Graph, links: Sequence[Link], heads: Mapping[str, Head], thresholds: Sequence[float], kind: Confidence
) -> Graph:
    """A network whose single output is, for each sample, that of the first exit that is sure enough."""
    end = classes(graph)[0].name
    places = [link.node for link in links]
    return spliced(graph, Selected(heads, thresholds, kind).eval(), [*places, end], end, NAME)


def taught(
    graph: Graph, links: Sequence[Link], heads: Mapping[str, Head], context: Context, recipe: Recipe, joint: bool
) -> tuple[Graph, dict[str, Head], Recipe]:
    """A network and heads, trained, the heads alone or both together; and the recipe with its precision settled.

    Alone, the network evaluates while they train: its batch norms are folded and its dropout is off, so that
    heads see what they will see, and no label is needed.

    Args:
        graph: the network; it is not changed.
        links: places of the heads.
        heads: by place; they are not changed.
        context: with data to train on.
        recipe: how.
        joint: the network learns too, by the recipe.
    """
    if recipe.steps == 0:
        return graph, dict(heads), recipe
    base = graph if joint else _folded(graph, links)
    form, answers = _form(base, links, heads)
    end = classes(base)[0].name
    rule = LearnFromEnd(answers, end, recipe.distil.temperature if recipe.distil else 1.0)
    if joint:
        recipe = replace(recipe, rules=(*recipe.rules, rule))
    else:
        context = replace(context, task=replace(context.task, loss=None, step=_forward(form)))
        recipe = replace(recipe, distil=None, rules=(*recipe.rules, rule))
        _freeze(form, base)
    recipe = concrete(form, context, recipe)
    result = fit_network(form, context, recipe).tensors()
    trained = {name: _loaded(head, f"{NAME}.heads.{key(name)}.", result) for name, head in heads.items()}
    return (with_tensors(graph, result) if joint else graph), trained, recipe


def _folded(graph: Graph, links: Sequence[Link]) -> Graph:
    """The network with its batch norms folded, which is faster, where the places and the end keep their names."""
    folded = fold_batch_norm(graph)
    names = {n.name for n in folded.net.graph.nodes}
    wanted = {*(link.node for link in links), classes(graph)[0].name}
    return folded if wanted <= names else graph


def _form(graph: Graph, links: Sequence[Link], heads: Mapping[str, Head]) -> tuple[Graph, tuple[str, ...]]:
    """The network with heads that nothing chooses yet: its output is its own; and the names of their logits."""
    form = with_exits(graph, links, heads, [NEVER] * len(links), "probability")
    old = {n.name for n in graph.net.graph.nodes}
    chosen = [n for n in form.nodes(aten.where.self) if n.name not in old]
    nodes: dict[str, Node] = {n.name: n for n in form.net.graph.nodes}
    form.net.graph.output_node().args = ((nodes[classes(graph)[0].name],),)
    form.net.recompile()
    logits: list[Any] = [n.args[1] for n in reversed(chosen)]
    return form, tuple(n.name for n in logits)


def _freeze(form: Graph, base: Graph) -> None:
    """The network's own part stays as it is and evaluates, in place."""
    old = {n.name for n in base.net.graph.nodes}
    for name, parameter in form.net.named_parameters():
        parameter.requires_grad_(name.startswith(f"{NAME}."))
    for node in set_mode(form, False).net.graph.nodes:
        if node.name in old:
            node.meta.pop("train", None)


def _forward(graph: Graph) -> Any:
    """A training step that runs the network and asks nothing of its answer."""

    def step(network: nn.Module, batch: Batch) -> Tensor:
        inputs, _ = checked(batch, graph, "train")
        network(*inputs)
        return torch.zeros((), device=inputs[0].device)

    return step


def _loaded(head: Head, prefix: str, tensors: Mapping[str, Tensor]) -> Head:
    fresh, state = copy.deepcopy(head), head.state_dict()
    fresh.load_state_dict({name: tensors.get(f"{prefix}{name}", state[name]).detach().cpu() for name in state})
    return fresh


@torch.no_grad()
def with_tensors(graph: Graph, tensors: Mapping[str, Tensor]) -> Graph:
    """A network with the values of other tensors, by name."""
    fresh = graph.copy()
    for name, tensor in fresh.tensors().items():
        tensor.copy_(tensors[name])
    return fresh


def listening(graph: Graph, links: Sequence[Link], heads: Mapping[str, Head]) -> tuple[Graph, tuple[str, ...]]:
    """A network that returns the logits of all heads and of its end, and their names in order."""
    form, answers = _form(graph, links, heads)
    names = (*answers, classes(graph)[0].name)
    return opened(form, names), names
