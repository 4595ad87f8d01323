"""Tie: layers of equal shape that share one weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.compress.quantise.annotate import fits
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.compress.share.layers import shared_layers
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.model import Graph, shaped
from trimtab.graph.modes import set_mode

Names = tuple[str, ...]


@dataclass(frozen=True)
class Tie:
    """Layers or blocks of equal shape get one weight between them, their mean, and train on with it.

    w = (w_1 + ... + w_n) / n. Parameters shared are stored once; multiply-adds stay what they were.

    Args:
        groups: layers, blocks or parameters to tie, such as `[["layer1.1", "layer1.2"]]`: every parameter of the first
            is shared with those of the same name in the others.
        count: in place of `groups`: how many pairs of single weights to tie, the nearest first, by the distance
            |a - b|^2 / (|a|^2 + |b|^2); each weight is in one pair at most.
        train: settings of `Distil` to train with afterwards, such as `{"steps": 300}`; None for none.
        skip: names of layers that `count` leaves alone: exact, a prefix, or a pattern.

    Raises:
        InputError: a name is unknown, shapes differ, or fewer pairs can be tied.

    Source: Lan et al. (2020), ALBERT, section 3.1, cross-layer parameter sharing; Press & Wolf (2017), Using the
    Output Embedding to Improve Language Models.
    """

    groups: tuple[tuple[str, ...], ...] | None = None
    count: int | None = None
    train: Mapping[str, Any] | None = None
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis: how many pairs of weights to tie."""
        pairs = _pairs(graph, (*context.task.keep, *self.skip))
        return (Axis("Tie", tuple(range(len(pairs) + 1)), ordered=True),) if pairs else ()

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with tied weights, trained where `train` says so."""
        training: Distil | None = None if self.train is None else made(Distil, self.train)
        tied = _tied(graph, self._chosen(graph, context))
        return tied if training is None else training.apply(tied, context)

    def resolve(self, graph: Graph, context: Context) -> Tie:
        """The same with names in place of `count`, and the precision and memory layout of its training settled."""
        named = replace(self, groups=self._chosen(graph, context), count=None)
        if self.train is None:
            return named
        training: Distil = made(Distil, self.train)
        settled = training.resolve(_tied(graph, named.groups or ()), context)
        found = {"precision": settled.precision, "channels_last": settled.channels_last}
        return replace(named, train={**self.train, **found})

    def _chosen(self, graph: Graph, context: Context) -> tuple[Names, ...]:
        """The groups, those of `count` among them."""
        if (self.groups is None) == (self.count is None):
            raise InputError("Tie", got="both groups and count" if self.groups else "neither", expected="one of them")
        if self.groups is not None:
            return self.groups
        pairs = _pairs(graph, (*context.task.keep, *self.skip))
        if self.count is None or not 1 <= self.count <= len(pairs):
            raise InputError("Tie: count", got=self.count, expected=f"1 to {len(pairs)}, the pairs of equal shape")
        return tuple(pairs[: self.count])


def _pairs(graph: Graph, skip: Sequence[str]) -> list[Names]:
    """Pairs of weights of equal shape, the nearest first, each weight in one pair at most."""
    tensors = graph.tensors()
    names = shared_layers(graph, skip)
    every = [(a, b) for a, b in combinations(names, 2) if tensors[a].shape == tensors[b].shape]
    found: list[Names] = []
    for a, b in sorted(every, key=lambda pair: _distance(tensors[pair[0]].detach(), tensors[pair[1]].detach())):
        if not {a, b} & {name for pair in found for name in pair}:
            found.append((a, b))
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().sum() / (a.square().sum() + b.square().sum()).clamp_min(1e-30))


def _tied(graph: Graph, groups: Sequence[Sequence[str]]) -> Graph:
    result = set_mode(graph.copy(), False)
    aliases: list[tuple[str, str]] = []
    for group in groups:
        for first, others in _members(result, group).items():
            shared = result.net.get_parameter(first)
            with torch.no_grad():
                shared.copy_(torch.stack([result.net.get_parameter(n) for n in (first, *others)]).mean(0))
            for name in others:
                for node in result.net.graph.find_nodes(op="get_attr", target=name):
                    node.target = first
                module, _, leaf = name.rpartition(".")
                del result.net.get_submodule(module)._parameters[leaf]
                aliases += [(name, first), *((alias, first) for alias, held in graph.tied if held == name)]
    replaced = {name for name, _ in aliases}
    kept = tuple(pair for pair in result.tied if pair[1] not in replaced and pair[0] not in replaced)
    result.net.graph.lint()
    result.net.recompile()
    result = replace(result, tied=(*kept, *dict.fromkeys(aliases)))
    return shaped(result.note(f"Tie: {len(replaced)} parameters are shared: a smaller file, as many multiply-adds."))


def _members(graph: Graph, group: Sequence[str]) -> dict[str, list[str]]:
    """For each parameter of the first of a group, those that become it.

    Raises:
        InputError: there are fewer than two, one is unknown, or shapes differ.
    """
    parameters = dict(graph.net.named_parameters())
    if len(set(group)) != len(group) or len(group) < 2:
        raise InputError("Tie: groups", got=str(list(group)), expected="two or more different names")
    inside = [_below(parameters, name) for name in group]
    found: dict[str, list[str]] = {}
    for rest, first in inside[0].items():
        if any(rest not in other for other in inside[1:]):
            raise InputError("Tie", where=first, got=f"no {rest or 'parameter'} in one of {', '.join(group[1:])}")
        found[first] = [other[rest] for other in inside[1:]]
        shapes = {name: list(parameters[name].shape) for name in (first, *found[first])}
        if len({str(shape) for shape in shapes.values()}) > 1:
            raise InputError("Tie: shapes differ", got=", ".join(f"{k} {v}" for k, v in shapes.items()))
    return found


def _below(parameters: Mapping[str, nn.Parameter], name: str) -> dict[str, str]:
    """The parameters that a name means, by what follows it."""
    found = {each.removeprefix(name): each for each in parameters if each == name or each.startswith(f"{name}.")}
    if not found:
        near = [each for each in parameters if fits(each, f"{name}*")]
        raise InputError(
            "Tie", where=name, got="no layer of this name", expected=", ".join(near[:6]) or "a layer's name"
        )
    return found
