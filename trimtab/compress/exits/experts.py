"""Experts: a dense feed-forward layer as a mixture of experts, of which each input uses a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.exits.heads import key
from trimtab.compress.exits.mixture import Gathered, Masked, Split, balanced, router
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.choices import opened
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.rules.ties import argument, shape
from trimtab.graph.splice import spliced
from trimtab.train.data import checked

aten = torch.ops.aten
NAME = "experts"
"""What the parameters of mixtures begin with."""
_ACTIVATIONS: Mapping[Any, Literal["relu", "gelu", "silu"]] = {
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.gelu.default: "gelu",
    aten.silu.default: "silu",
}
_IDLE = (aten.dropout.default, aten.dropout_.default)
_TOKENS = 4096
"""Inputs of a layer that its router is fitted to."""


@dataclass(frozen=True)
class FeedForward:
    """Two linear layers with an activation between, read by nothing else.

    Args:
        name: of the first layer.
        first: the name of its node.
        hidden: that of the activation's.
        second: that of the second layer's.
        activation: `relu`, `gelu` or `silu`.
        width: hidden neurons.
        steps: whether it is applied to each step of a sequence.
    """

    name: str
    first: str
    hidden: str
    second: str
    activation: Literal["relu", "gelu", "silu"]
    width: int
    steps: bool


@dataclass(frozen=True)
class Experts:
    """Mixture of experts from dense feed-forward layers: the hidden neurons in groups, of which each input uses a few.

    y = sum over the `active` experts i of largest r_i(x) of W2_i act(W1_i x + b1_i) + b2

    Neurons that act alike form an expert, all of one size; the router r predicts each expert's activity. On single
    vectors only the chosen experts' weights are read, which pays at batch 1 where few of them are; on sequences the
    others are multiplied by zero, which is no faster in dense kernels. Train with `Distil` afterwards.

    Args:
        layers: names of first layers of feed-forward pairs; None for all that can be split so.
        experts: how many in each layer; must divide its width.
        active: how many each input uses.
        split: `weights`: neurons with like rows of W1 go together; `activity`: those that act on the same inputs.

    Raises:
        InputError: there is no such layer, its width is no multiple, or `activity` has no data.

    Source: Zhang et al. (2022), MoEfication: Transformer Feed-forward Layers are Mixtures of Experts, section 3:
    parameter clustering with balanced k-means, and routers. Ours is linear, fitted by least squares to the sum of
    positive activations of each expert; without data it is their parameter centre.
    """

    layers: tuple[str, ...] | None = None
    experts: int = 8
    active: int = 2
    split: Literal["weights", "activity"] = "weights"

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each feed-forward layer: whether it becomes a mixture."""
        return tuple(Axis(f"Experts:{each.name}", (False, True)) for each in feed_forward(graph))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with mixtures in place of the layers."""
        base = set_mode(graph.copy(), False)
        chosen = self._chosen(base)
        steps = 0
        for each in chosen:
            context.progress("experts", steps, len(chosen))
            base, steps = self._made(base, each, context), steps + 1
        sequences = [each.name for each in chosen if each.steps]
        told = f"Experts: {self.active} of {self.experts} are used for each input of {len(chosen)} layers"
        slow = "; on sequences the others are multiplied by zero: no faster in dense kernels" if sequences else ""
        return base.note(f"{told}{slow}.")

    def resolve(self, graph: Graph, context: Context) -> Experts:
        """The same with the layers by name."""
        return replace(self, layers=tuple(each.name for each in self._chosen(graph)))

    def _chosen(self, graph: Graph) -> tuple[FeedForward, ...]:
        refuse_quantised(graph, "Experts")
        if self.experts < 2 or not 1 <= self.active <= self.experts:
            got = f"{self.active} of {self.experts}"
            raise InputError("Experts: active", got=got, expected="1 or more of at least 2 experts")
        found = {each.name: each for each in feed_forward(graph)}
        if not found:
            raise InputError("Experts: the network has no feed-forward layer", expected="linear, activation, linear")
        for name in self.layers or ():
            if name not in found:
                raise InputError("Experts: layers", got=repr(name), expected=f"some of {', '.join(found)}")
            if found[name].width % self.experts:
                expected = f"a divisor of its width {found[name].width}"
                raise InputError("Experts: experts", where=name, got=self.experts, expected=expected)
        fits = [e for e in found.values() if e.width % self.experts == 0]
        chosen = [e for e in fits if self.layers is None or e.name in self.layers]
        if not chosen:
            widths = ", ".join(f"{e.name} {e.width}" for e in found.values())
            raise InputError("Experts: experts", got=self.experts, expected=f"a divisor of a layer's width: {widths}")
        return tuple(chosen)

    def _made(self, graph: Graph, each: FeedForward, context: Context) -> Graph:
        nodes = {n.name: n for n in graph.net.graph.nodes}
        first, second = nodes[each.first], nodes[each.second]
        source: Any = first.args[0]
        x, h = _seen(graph, source.name, each.hidden, context)
        if self.split == "activity" and h is None:
            raise InputError("Experts: split activity: no data", do="Give calibrate= or train= to the Task.")
        w1, w2 = (_held(graph, node.args[1]) for node in (first, second))
        b1, b2 = _bias(graph, first), _bias(graph, second)
        rows = w1 if self.split == "weights" or h is None else h.T
        groups = balanced(rows, self.experts, context.seed)
        weight, bias = router(w1, groups, x, h)
        parts = Split(w1, b1, w2, b2, weight, bias, groups)
        kind = Masked if each.steps else Gathered
        module = kind(parts, self.active, each.activation)
        return spliced(graph, module.eval(), [source.name], each.second, f"{NAME}.{key(each.name)}")


def feed_forward(graph: Graph) -> tuple[FeedForward, ...]:
    """Pairs of linear layers with an activation between that nothing else reads, in order."""
    found = []
    for second in graph.nodes(aten.linear.default):
        hidden = second.args[0]
        before = hidden
        while isinstance(before, Node) and before.target in _IDLE and len(before.users) == 1:
            before = before.args[0]
        kind = _ACTIVATIONS.get(before.target) if isinstance(before, Node) else None
        if kind is None or not isinstance(before, Node) or len(before.users) != 1:
            continue
        first = before.args[0]
        if not isinstance(first, Node) or first.target is not aten.linear.default or len(first.users) != 1:
            continue
        if kind == "gelu" and argument(before, 1, "approximate", "none") != "none":
            continue
        own: list[Any] = [n.args[1] for n in (first, second)]
        if any(getattr(w, "op", "") != "get_attr" or len(w.users) != 1 for w in own):
            continue
        name = str(own[0].target).removesuffix(".weight")
        steps = len(shape(first)) > 2
        found.append(FeedForward(name, first.name, before.name, second.name, kind, shape(first)[-1], steps))
    return tuple(found)


def _bias(graph: Graph, node: Node) -> Tensor | None:
    held = argument(node, 2, "bias")
    return None if held is None else _held(graph, held)


def _held(graph: Graph, node: Any) -> Tensor:
    return graph.tensors()[str(node.target)].detach()


@torch.no_grad()
def _seen(graph: Graph, source: str, hidden: str, context: Context) -> tuple[Tensor | None, Tensor | None]:
    """What a layer reads and what its neurons answer on the calibration data: [T, d] and [T, width]; none without."""
    if not context.calibrate:
        return None, None
    form = opened(graph, (source, hidden))
    reads, acts, count = [], [], 0
    for batch in context.calibrate:
        inputs, _ = checked(batch, graph, "calibrate")
        x, h = form.net(*inputs)
        reads.append(x.reshape(-1, x.shape[-1]))
        acts.append(h.reshape(-1, h.shape[-1]))
        count += len(reads[-1])
        if count >= _TOKENS:
            break
    return _some(reads), _some(acts)


def _some(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))[:_TOKENS].float()
