"""Layers: which layers of a network can be factorised, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.annotate import fits
from trimtab.compress.quantise.layer import CONVOLUTIONS, LINEAR, TRANSPOSED, layer_of, private, some
from trimtab.compress.quantise.layer import Layer as Known
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.graph.model import EXAMPLE_BATCH, Graph, shaped
from trimtab.hardware.layer import Layer


@dataclass(frozen=True)
class Whole:
    """A layer that can be factorised.

    Args:
        name: the user's name of it.
        node: that computes it.
        source: the node that it reads.
        weight: the parameter's name.
        bias: the parameter's name, if it has one.
        flipped: the weight holds inputs before outputs (`x @ W`).
        shape: of the layer.
    """

    name: str
    node: str
    source: str
    weight: str
    bias: str | None
    flipped: bool
    shape: Layer

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Its weight in float64, outputs first: [O, I, k...]."""
        weight = tensors[self.weight].detach().double().cpu()
        return weight.mT if self.flipped else weight

    def offset(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Its bias in float64 [O], zeros where it has none."""
        if self.bias is None:
            return torch.zeros(self.shape.outputs, dtype=torch.float64)
        return tensors[self.bias].detach().double().cpu()


def wholes(graph: Graph) -> tuple[dict[str, Whole], dict[str, str]]:
    """The layers that can be factorised, by name in the order of execution, and for each other layer the reason."""
    found: dict[str, Whole] = {}
    others: dict[str, str] = {}
    tensors = graph.tensors()
    for node in graph.nodes(*CONVOLUTIONS, *TRANSPOSED, *LINEAR):
        layer = layer_of(node, tensors)
        if layer is None:
            if node.target in CONVOLUTIONS:
                others[node.name] = "its weight is no parameter of its own"
            continue
        shape, why = _described(graph, layer, node)
        name = _name(layer.weight)
        if shape is None:
            others[name] = why
        else:
            found[name] = Whole(
                name, node.name, _source(node, layer).name, layer.weight, layer.bias, layer.flipped, shape
            )
    return found, others


def chosen(
    known: Mapping[str, Whole], graph: Graph, context: Context, names: Sequence[str], skip: Sequence[str]
) -> dict[str, Whole]:
    """The layers that `names` mean (all where there are none), without those that `skip` or the task's keep= mean.

    Raises:
        InputError: an entry of `names` or `skip` fits no layer; the message says why, if that is a layer left whole.
    """
    others = wholes(graph)[1]
    for what, entries in (("layers", names), ("skip", skip)):
        for entry in entries:
            if any(fits(name, entry) for name in known) or (what == "skip" and any(fits(n, entry) for n in others)):
                continue
            refuse(entry, known, others, f"Factorise: {what}")
    left = [*skip, *context.task.keep]
    return {
        name: whole
        for name, whole in known.items()
        if (not names or any(fits(name, entry) for entry in names))
        and not any(fits(name, entry) or fits(whole.weight, entry) for entry in left)
    }


def moving(graph: Graph, nodes: Sequence[str]) -> set[str]:
    """Those of the nodes that have the batch in another side than the first."""
    larger = shaped(graph.copy(), EXAMPLE_BATCH + 1)
    after = {node.name: node.meta.get("val") for node in larger.net.graph.nodes}
    before = {node.name: node.meta.get("val") for node in graph.net.graph.nodes}
    return {name for name in nodes if before[name].shape[1:] != after[name].shape[1:]}


def refuse(name: str, known: Mapping[str, Whole], others: Mapping[str, str], what: str) -> None:
    """InputError for a name that is no layer that can be factorised."""
    if name in others:
        raise InputError(what, where=name, got=f"a layer that stays whole: {others[name]}")
    names = list(known)
    raise InputError(what, got=repr(name), expected=f"one of {some(names)}" if names else "no layer")


def left_whole(others: Mapping[str, str]) -> list[str]:
    """One sentence for each reason for which layers stay whole."""
    reasons: dict[str, list[str]] = {}
    for name, why in others.items():
        reasons.setdefault(why, []).append(name)
    return [f"Factorise leaves {some(names)} whole: {why}." for why, names in reasons.items()]


def _name(weight: str) -> str:
    return weight.removesuffix(".weight")


def _source(node: Node, layer: Known) -> Node:
    source = node.args[layer.data]
    assert isinstance(source, Node)
    return source


def _described(graph: Graph, layer: Known, node: Node) -> tuple[Layer | None, str]:
    """The shape of a layer; None and the reason where it cannot be factorised."""
    source = _source(node, layer)
    if node.target in TRANSPOSED:
        return None, "a transposed convolution"
    if layer.groups > 1:
        return None, "a grouped convolution"
    if not private(graph, layer, bias=False):
        return None, "its weight is read more than once"
    if source.op == "get_attr" or source.meta["val"].shape[0] < EXAMPLE_BATCH:
        return None, "its input has no batch"
    weight = tuple(graph.tensors()[layer.weight].shape)
    given = tuple(source.meta["val"].shape)
    if node.target not in CONVOLUTIONS:
        outputs, inputs = reversed(weight) if layer.flipped else weight
        return Layer(inputs, outputs, spatial=(math.prod(given[:-1]) // EXAMPLE_BATCH or 1,)), ""
    return _convolution(node, given, weight)


def _convolution(node: Node, given: tuple[int, ...], weight: tuple[int, ...]) -> tuple[Layer | None, str]:
    sides = len(weight) - 2
    if len(given) != sides + 2:
        return None, "its input has no batch"
    stride, dilation = (_each(_argument(node, i, name, 1), sides) for i, name in ((3, "stride"), (5, "dilation")))
    padding = _argument(node, 4, "padding", 0)
    if padding == "same":
        reach = [d * (k - 1) for k, d in zip(weight[2:], dilation, strict=True)]
        if any(r % 2 for r in reach):
            return None, "its padding is uneven"
        padding = [r // 2 for r in reach]
    pads = _each(0 if padding == "valid" else padding, sides)
    return Layer(given[1], weight[0], weight[2:], given[2:], stride, pads, dilation), ""


def _argument(node: Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _each(value: Any, sides: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
    return values * sides if len(values) == 1 else values
