"""Gates: blocks or channels that run for some inputs only."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.exits.gates import NAME, Decider, KeepRate, Learning, Mask, Skip
from trimtab.compress.exits.heads import channels_last, key
from trimtab.compress.exits.teach import with_tensors
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.compress.recover import Distil
from trimtab.compress.settings import made
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.core.store import digest
from trimtab.graph.blocks import Block, blocks
from trimtab.graph.macs import macs
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.graph.rules.ties import shape
from trimtab.graph.splice import spliced
from trimtab.train.loop import fit_network
from trimtab.train.precision import concrete

aten = torch.ops.aten
_RELU = (aten.relu.default, aten.relu_.default)
_ACTIVATIONS = (*_RELU, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.relu6.default)


@dataclass(frozen=True)
class Place:
    """Where a gate stands.

    Args:
        name: of the block.
        source: the name of the node that the gate reads.
        gated: that of the node that it gates.
        macs: what it gates.
    """

    name: str
    source: str
    gated: str
    macs: int


@dataclass(frozen=True)
class Gates:
    """Gates: a small network decides from each sample which residual blocks, or which channels in them, run for it.

    blocks: y = x + z(x) f(x);   channels: y = x + f_2(z(x) * f_1(x));   z in {0, 1} (eq. 10)

    Gates and network are trained together, straight through, to run `rate` of the gated work. Skipped blocks are
    exported as branches and are not computed; a batch skips one when all its samples do. Gated channels are
    multiplied by zero: dense kernels do not get faster.

    Args:
        what: `blocks` or `channels`.
        at: names of residual blocks, as `trimtab.graph.blocks.blocks` gives them; None for all.
        rate: share of the gated multiply-adds that is to run, 0 to 1.
        weight: of the penalty that holds that share.
        hidden: width of each gate.
        train: settings of `Distil` that gates and network are trained by, such as `{"steps": 600}`.

    Raises:
        InputError: the network has no residual blocks, or is quantised already; a setting is out of range.

    Source: Veit & Belongie (2018), Convolutional Networks with Adaptive Inference Graphs; Wang et al. (2018), SkipNet;
    Bejnordi, Blankevoort & Welling (2020), Batch-Shaping for Learning Conditional Channel Gated Networks, section 3.1.
    """

    what: Literal["blocks", "channels"] = "blocks"
    at: tuple[str, ...] | None = None
    rate: float = 0.6
    weight: float = 5.0
    hidden: int = 16
    train: Mapping[str, Any] = field(default_factory=lambda: {"steps": 600, "lr": 0.01})

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each residual block: whether it is gated."""
        return tuple(Axis(f"Gates:{place.name}", (False, True)) for place in places(graph, self.what))

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph with gates, trained, evaluating."""
        return self._made(graph, context)[1]

    def resolve(self, graph: Graph, context: Context) -> Gates:
        """The same with the blocks by name, and the training's precision settled."""
        return self._made(graph, context)[0]

    def _made(self, graph: Graph, context: Context) -> tuple[Gates, Graph]:
        training = self._checked(graph)
        found = self._chosen(graph)
        base = set_mode(graph.copy(), False)
        fresh = {place.name: _fresh(base, place, self, training.seed) for place in found}
        form, gates = _form(base, found, fresh, self.what == "blocks")
        recipe = training.recipe()
        if recipe.steps:
            total = sum(place.macs for place in found)
            shares = {name: place.macs / total for name, place in zip(gates, found, strict=True)}
            recipe = replace(recipe, rules=(*recipe.rules, KeepRate(shares, self.rate, self.weight)))
            recipe = concrete(form, context, recipe)
            form = fit_network(form, context, recipe)
        result = form.tensors()
        own = with_tensors(base, result)
        for place in reversed(found):  # the last first: what is put behind a block is what the next one then reads
            gate = _loaded(fresh[place.name], f"{_prefix(place)}.gate.", result)
            part = Skip(gate) if self.what == "blocks" else Mask(gate)
            own = spliced(own, part.eval(), [place.source, place.gated], place.gated, _prefix(place))
        train = {**self.train, "precision": recipe.precision, "channels_last": recipe.channels_last}
        return replace(self, at=tuple(p.name for p in found), train=train), own.note(_told(self, found))

    def _checked(self, graph: Graph) -> Distil:
        refuse_quantised(graph, "Gates")
        if any(name.startswith(f"{NAME}.") for name in graph.tensors()):
            raise InputError("Gates: the network has gates already", do="Start from the network without them.")
        if not 0 <= self.rate <= 1:
            raise InputError("Gates: rate", got=self.rate, expected="a share from 0 to 1")
        if self.weight < 0 or self.hidden < 1:
            name, got = ("weight", self.weight) if self.weight < 0 else ("hidden", self.hidden)
            raise InputError(f"Gates: {name}", got=got, expected="0 or more" if name == "weight" else "1 or more")
        training: Distil = made(Distil, {"steps": 600, "lr": 0.01, **self.train})
        return training

    def _chosen(self, graph: Graph) -> tuple[Place, ...]:
        found = places(graph, self.what)
        if not found:
            raise InputError("Gates: the network has no residual blocks to gate", got=f"what={self.what}")
        known = {place.name for place in found}
        for name in self.at or ():
            if name not in known:
                raise InputError("Gates: at", got=repr(name), expected=f"some of {', '.join(sorted(known))}")
        chosen = tuple(place for place in found if self.at is None or place.name in self.at)
        if not chosen:
            raise InputError("Gates: at", got="no block", expected="one or more, or nothing for all")
        return chosen


def places(graph: Graph, what: str) -> tuple[Place, ...]:
    """Where gates can stand: behind residual blocks that lie in no other, or inside them before the last layer."""
    nodes = {n.name: n for n in graph.net.graph.nodes}
    found: list[Place] = []
    every = blocks(graph)
    for block in every:
        if any(block is not other and block.add in other.nodes for other in every):
            continue
        place = _block(block, nodes) if what == "blocks" else _channels(block, nodes)
        if place is not None:
            found.append(place)
    return tuple(found)


def _block(block: Block, nodes: Mapping[str, Node]) -> Place:
    add = nodes[block.add]
    behind = next(iter(add.users), None)
    both = behind is not None and len(add.users) == 1 and behind.target in _RELU
    # max(x, 0) = x where x comes out of such a maximum itself: then the activation is skipped too
    gated = behind if both and behind is not None and nodes[block.source].target in _RELU else add
    return Place(block.name, block.source, gated.name, sum(macs(nodes[name]) for name in block.nodes))


def _channels(block: Block, nodes: Mapping[str, Node]) -> Place | None:
    """The last activation in a block before its last layer; its work is that of the layers beside it."""
    inner = [nodes[name] for name in block.nodes]
    acts = [n for n in inner if n.target in _ACTIVATIONS]
    if not acts or not any(macs(n) for n in inner[inner.index(acts[-1]) :]):
        return None
    return Place(block.name, block.source, acts[-1].name, sum(macs(n) for n in inner))


def _fresh(graph: Graph, place: Place, settings: Gates, seed: int) -> Decider:
    nodes = {n.name: n for n in graph.net.graph.nodes}
    source, gated = nodes[place.source], nodes[place.gated]
    last = channels_last(source)
    at = -1 if last else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digest("gate", seed, place.name)[:8], 16))
        parts = 1 if settings.what == "blocks" else shape(gated)[at]
        return Decider(shape(source)[at], parts, settings.hidden, last)


def _form(
    graph: Graph, found: Sequence[Place], fresh: Mapping[str, Decider], whole: bool
) -> tuple[Graph, tuple[str, ...]]:
    """The network as it trains, and the names of the nodes of the gates' answers."""
    gates: list[str] = []
    for place in reversed(found):
        before = {n.name for n in graph.net.graph.nodes}
        part = Learning(fresh[place.name], whole)
        graph = spliced(graph, part, [place.source, place.gated], place.gated, _prefix(place))
        products = [n for n in graph.nodes(aten.mul.Tensor) if n.name not in before]
        answer: Any = products[-1].args[0]
        gates.insert(0, answer.name)
    return graph, tuple(gates)


def _prefix(place: Place) -> str:
    return f"{NAME}.{key(place.name)}"


def _loaded(gate: Decider, prefix: str, tensors: Mapping[str, Tensor]) -> Decider:
    """A copy of a gate with its trained weights."""
    fresh = copy.deepcopy(gate)
    fresh.load_state_dict({name: tensors[f"{prefix}{name}"].detach().cpu() for name in gate.state_dict()})
    return fresh


def _told(settings: Gates, found: Sequence[Place]) -> str:
    if settings.what == "blocks":
        return f"Gates: {len(found)} blocks run for the inputs that need them; a skipped one is not computed."
    return (
        f"Gates: channels of {len(found)} blocks are multiplied by 0 or 1 for each input: no faster in dense kernels, "
        "which compute them all."
    )
