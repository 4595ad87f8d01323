"""Smooth: activations that are easier to quantise, without changing what the network computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.calibrate import calibration_inputs
from trimtab.compress.quantise.follow import origin
from trimtab.compress.quantise.layer import LINEAR, Layer, layer_of, plain, private, scaled, some
from trimtab.compress.quantise.links import Link, Reader, links, rescale, skipped
from trimtab.compress.quantise.scales import Seen, awq_scale, seen, smooth_scale
from trimtab.compress.quantise.technique import refuse_quantised
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.space import Axis
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph, place, shaped
from trimtab.graph.modes import set_mode

_TIMES = torch.ops.aten.mul.Tensor
_BITS = range(2, 9)


@dataclass(frozen=True)
class Smooth:
    """Move the difficulty of quantising activations into the weights that read them, channel by channel.

        Y = (X diag(s)^-1) (diag(s) W),    s_j = max abs(X_j)^alpha / max abs(W_j)^(1 - alpha)    (SmoothQuant, eq. 4)

    1 / s is folded into what makes X: a layer norm or RMS norm, a product with a parameter, a linear layer (also
    behind attention or a gate). All layers that read it share one s (query, key and value; gate and up). A layer
    whose input something else reads too, or that has none of these before it, is left as it was, and the notes say so.

    With `method="awq"` weights alone are to be quantised, and those that meet large activations are protected:

        s = mean abs(X)^a,    a in 0, 1/20, ..., 1 with the least |Q(W diag(s)) diag(s)^-1 X - W X|    (AWQ, eq. 4, 5)

    Args:
        alpha: how much of the difficulty moves, 0 to 1 (SmoothQuant; AWQ searches its own).
        method: `smoothquant` for integer activations, `awq` for weights only.
        bits: of the weights that AWQ's search quantises.
        group: inputs that share a scale there.
        insert: multiply by 1 / s where it cannot be folded: exact too, for one product more each time it runs.
        skip: names of linear layers to leave as they are: exact, a prefix, or a pattern.

    Raises:
        InputError: the network is quantised already, or a setting or the calibration data is wrong.

    Source: Xiao et al. (2023), SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, section 4; Lin et al. (2024), AWQ: Activation-aware Weight Quantization, section 3.2.
    """

    alpha: float = 0.5
    method: Literal["smoothquant", "awq"] = "smoothquant"
    bits: int = 4
    group: int = 32
    insert: bool = False
    skip: tuple[str, ...] = ()

    def sites(self, graph: Graph, context: Context) -> tuple[Axis, ...]:
        """One axis for each norm or layer that a scale could be folded into: whether it is."""
        folded = for_inference(set_mode(graph.copy(), False))
        names = dict.fromkeys(link.maker.name for link in _foldable(_links(folded), self._skipped(folded)))
        return tuple(Axis(f"Smooth:{name}", (False, True)) for name in names)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """The graph, evaluating, with its scales moved."""
        _check(self)
        refuse_quantised(graph, "Smooth")
        folded = for_inference(set_mode(graph.copy(), False))
        skip, found = self._skipped(folded), _links(folded)
        folds = _foldable(found, skip)
        loose = _loose(folded, folds, skip)
        inputs, note = calibration_inputs(folded, context, "Smooth")
        sets = [list(link.readers) for link in folds] + (list(loose.values()) if self.insert else [])
        context.progress("smooth", 0, 1)
        stats = seen(folded, inputs, [r.layer for readers in sets for r in readers])
        held = _held(folded, folds, sets)
        free = [link.free for link in folds] + [_all(readers) for readers in sets[len(folds) :]]
        factors = [self._factor(held, readers, mask, stats) for readers, mask in zip(sets, free, strict=True)]
        for link, factor in zip(folds, factors, strict=False):
            rescale(held, link, factor)
        for readers, factor in zip(sets[len(folds) :], factors[len(folds) :], strict=True):
            _insert(folded, held, readers, factor)
        for name, value in held.items():
            folded.tensors()[name].detach().copy_(value)
        folded.net.recompile()
        context.progress("smooth", 1, 1)
        said = [] if self.insert else _left(found, loose)
        return shaped(folded).note(*filter(None, [note]), *said)

    def _factor(
        self, weights: Mapping[str, Tensor], readers: Sequence[Reader], free: Tensor, stats: Mapping[str, Seen]
    ) -> Tensor:
        if self.method == "awq":
            return awq_scale(weights, readers, free, stats, self.bits, self.group)
        return smooth_scale(weights, readers, free, stats, self.alpha)

    def _skipped(self, folded: Graph) -> set[str]:
        names = [layer.name for layer in _linear(folded)]
        return skipped(names, self.skip, "Smooth")


def _check(settings: Smooth) -> None:
    if not 0 <= settings.alpha <= 1:
        raise InputError("Smooth: alpha", got=settings.alpha, expected="0 to 1")
    if settings.method not in ("smoothquant", "awq"):
        raise InputError("Smooth: method", got=repr(settings.method), expected="smoothquant or awq")
    if settings.bits not in _BITS:
        raise InputError("Smooth: bits", got=settings.bits, expected=f"{_BITS[0]} to {_BITS[-1]}")
    if settings.group < 2:
        raise InputError("Smooth: group", got=settings.group, expected="2 or more")


def _links(folded: Graph) -> tuple[Link, ...]:
    return links(folded, LINEAR, norms=True)


def _linear(graph: Graph) -> Iterator[Layer]:
    """The linear layers whose weight is their own, in graph order."""
    tensors = graph.tensors()
    for node in graph.nodes(*LINEAR):
        layer = layer_of(node, tensors)
        if layer is not None and private(graph, layer, bias=False):
            yield layer


def _foldable(found: Sequence[Link], skip: set[str]) -> list[Link]:
    """Links whose readers may all change, in graph order; a channel that two could scale is the nearer one's."""
    taken: dict[str, Tensor] = {}
    kept = []
    for link in reversed(found):
        if not link.readers or any(r.layer.name in skip for r in link.readers):
            continue
        free = link.free.clone()
        for reader in link.readers:
            before = taken.get(reader.layer.weight, torch.zeros_like(reader.source, dtype=torch.bool))
            free[reader.source[before & (reader.source >= 0)]] = False
        if not bool(free.any()):
            continue
        kept.append(replace(link, free=free))
        for reader in link.readers:
            own = (reader.source >= 0) & free[reader.source.clamp_min(0)]
            taken[reader.layer.weight] = own | taken.get(reader.layer.weight, torch.zeros_like(own))
    return kept[::-1]


def _loose(graph: Graph, folds: Sequence[Link], skip: set[str]) -> dict[Node, list[Reader]]:
    """Linear layers that no scale can be folded for, by the node that they read."""
    folded = {reader.layer.weight for link in folds for reader in link.readers}
    found: dict[Node, list[Reader]] = {}
    for layer in _linear(graph):
        source = layer.node.args[layer.data]
        if layer.weight not in folded and layer.name not in skip and isinstance(source, Node):
            width = int(source.meta["val"].shape[-1])
            found.setdefault(source, []).append(Reader(layer, torch.arange(width)))
    return found


def _all(readers: Sequence[Reader]) -> Tensor:
    return torch.ones(len(readers[0].source), dtype=torch.bool)


def _held(graph: Graph, folds: Sequence[Link], sets: Sequence[Sequence[Reader]]) -> dict[str, Tensor]:
    """The weights and biases that will change, in float64."""
    names = {r.layer.weight for readers in sets for r in readers}
    names |= {name for link in folds for name in (link.maker.weight, link.maker.bias) if name is not None}
    return {name: tensor.detach().double().cpu() for name, tensor in graph.tensors().items() if name in names}


def _insert(graph: Graph, held: dict[str, Tensor], readers: Sequence[Reader], factor: Tensor) -> None:
    """Multiply what the readers read by 1 / factor, and their weights by the factor."""
    first = readers[0].layer
    source, weight = first.node.args[first.data], graph.tensors()[first.weight]
    assert isinstance(source, Node)  # _loose has seen to it
    name = f"{first.name}.smooth"
    while name in graph.tensors():
        name += "_"
    place(graph.net, name, nn.Parameter((1 / factor).to(weight), weight.requires_grad))
    with graph.net.graph.inserting_before(first.node):
        product = graph.net.graph.call_function(_TIMES, (source, graph.net.graph.get_attr(name)))
    for reader in readers:
        layer = reader.layer
        layer.node.update_arg(layer.data, product)
        held[layer.weight] = scaled(layer, held[layer.weight], factor, made=False)


def _left(found: Sequence[Link], loose: Mapping[Node, Sequence[Reader]]) -> list[str]:
    """One sentence for each reason for which linear layers are left as they were."""
    barriers = {r.layer.weight: link.barrier for link in found for r in link.readers if link.barrier is not None}
    reasons: dict[str, list[str]] = {}
    for node, readers in loose.items():
        for reader in readers:
            barrier = barriers.get(reader.layer.weight)
            before = origin(node)
            behind = "an input of the network" if before.op == "placeholder" else plain(before)
            why = f"{behind} comes before" if barrier is None else f"{barrier} reads the same tensor"
            reasons.setdefault(why, []).append(reader.layer.name)
    return [f"Smooth leaves {some(names)} as they were: {why}." for why, names in reasons.items()]
