"""Links: channels whose scale can move from the layer that makes them into the layers that read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.annotate import fits
from trimtab.compress.quantise.follow import Ids, followed, valueless
from trimtab.compress.quantise.layer import Layer, layer_of, norm_of, plain, private, scaled, some
from trimtab.core.errors import InputError
from trimtab.graph.model import Graph


@dataclass(frozen=True)
class Reader:
    """A layer that reads made channels, and which: `source[j]` is the made channel it reads as its j-th, or -1."""

    layer: Layer
    source: Tensor

    def taken(self, factor: Tensor) -> Tensor:
        """A factor for each made channel as one for each channel read; 1 where the channel comes from elsewhere."""
        return torch.where(self.source >= 0, factor[self.source.clamp_min(0)], factor.new_ones(()))

    def widest(self, values: Tensor, count: int) -> Tensor:
        """Of values for each channel read, the largest for each of `count` made channels; 0 where it is not read."""
        known = self.source >= 0
        return values.new_zeros(count).scatter_reduce(0, self.source[known], values[known], "amax")


@dataclass(frozen=True)
class Link:
    """A layer and those that read its channels through operators that pass a positive scale on.

        y = f(W2 h + b2), h = g(W1 x + b1) = s g(W1 x / s + b1 / s)    for g(s x) = s g(x), s > 0

    Args:
        maker: the layer that makes the channels.
        readers: the layers that read them.
        free: [channels], which are read by `readers` and by nothing else.
        path: the operators between.
        barrier: what else reads some of them, where something does.
    """

    maker: Layer
    readers: tuple[Reader, ...]
    free: Tensor
    path: tuple[Node, ...]
    barrier: str | None


def links(graph: Graph, readers: Collection[Any], norms: bool = False) -> tuple[Link, ...]:
    """Every layer with channels, and who reads them, in graph order.

    Args:
        graph: evaluating.
        readers: the operators whose weights may take a scale in; others count as a barrier.
        norms: whether the parameters of a norm, or a product with a parameter, make channels too.
    """
    order = list(graph.net.graph.nodes)
    at, tensors = {node: i for i, node in enumerate(order)}, graph.tensors()
    layers = {node: layer_of(node, tensors) for node in order}
    taking = {
        n: r for n, r in layers.items() if r is not None and n.target in readers and private(graph, r, bias=False)
    }
    found = []
    for node in order:
        maker = layers[node] or (norm_of(node, tensors) if norms else None)
        if maker is not None and private(graph, maker, bias=True):
            found.append(_traced(maker, order, at, taking))
    return tuple(found)


def _traced(maker: Layer, order: list[Node], at: Mapping[Node, int], taking: Mapping[Node, Layer]) -> Link:
    """Follow the made channels through the graph, operator by operator."""
    value = maker.node.meta["val"]
    channels = int(value.shape[maker.dim])
    shape = [channels if d == maker.dim % value.ndim else 1 for d in range(value.ndim)]
    numbers = torch.arange(1, channels + 1, dtype=torch.int32)
    ids: dict[Node, Ids] = {maker.node: numbers.reshape(shape).expand(value.shape)}
    held = torch.zeros(channels + 1, dtype=torch.bool)
    readers: list[Reader] = []
    barrier: str | None = None
    last = _last(maker.node, at)
    for node in order[at[maker.node] + 1 :]:
        if at[node] > last:
            break
        if valueless(node) or not any(n in ids for n in node.all_input_nodes):
            continue
        reader = _reader(taking[node], ids) if node in taking else None
        onward = None if reader is not None else followed(node, ids)
        if reader is not None:
            readers.append(reader)
        elif onward is not None:
            ids[node] = onward
            last = max(last, _last(node, at))
        else:
            for number in _present(node, ids):
                held[number.long()] = True
            barrier = barrier or plain(node)
    read = torch.zeros(channels, dtype=torch.bool)
    for reader in readers:
        read[reader.source[reader.source >= 0]] = True
    path = tuple(n for n in ids if n is not maker.node)
    return Link(maker, tuple(readers), read & ~held[1:], path, barrier)


def _last(node: Node, at: Mapping[Node, int]) -> int:
    return max((at[user] for user in node.users), default=-1)


def _present(node: Node, ids: Mapping[Node, Ids]) -> Iterator[Tensor]:
    for source in node.all_input_nodes:
        value = ids.get(source)
        for part in value if isinstance(value, tuple) else (value,):
            if part is not None:
                yield torch.unique(part)


def _reader(layer: Layer, ids: Mapping[Node, Ids]) -> Reader | None:
    value = ids.get(layer.node.args[layer.data])  # type: ignore[arg-type]
    if not isinstance(value, Tensor) or sum(n in ids for n in layer.node.all_input_nodes) > 1:
        return None
    rows = value.movedim(layer.dim, -1).reshape(-1, value.shape[layer.dim])
    return Reader(layer, rows[0].long() - 1) if bool((rows == rows[0]).all()) else None


def rescale(values: dict[str, Tensor], link: Link, factor: Tensor) -> None:
    """Divide what a layer makes by a factor, [channels], and multiply what is read by it: values by name, in place."""
    maker = link.maker
    values[maker.weight] = scaled(maker, values[maker.weight], 1 / factor, made=True)
    if maker.bias is not None:
        values[maker.bias] = values[maker.bias] / factor
    for reader in link.readers:
        name = reader.layer.weight
        values[name] = scaled(reader.layer, values[name], reader.taken(factor), made=False)


def skipped(names: Sequence[str], skip: Sequence[str], who: str) -> set[str]:
    """The layers that `skip` names: exact, a prefix, or a pattern.

    Raises:
        InputError: an entry of `skip` fits no layer.
    """
    for entry in skip:
        if not any(fits(name, entry) for name in names):
            raise InputError(f"{who}: skip", got=repr(entry), expected=f"one of {some(names)}" if names else "no layer")
    return {name for name in names if any(fits(name, entry) for entry in skip)}


def left(who: str, found: Sequence[Link]) -> list[str]:
    """One sentence for each reason for which layers keep the scale of some of their channels."""
    reasons: dict[str, list[str]] = {}
    for link in found:
        if link.barrier is not None and link.barrier != "the network's output" and not bool(link.free.all()):
            reasons.setdefault(link.barrier, []).append(link.maker.name)
    return [f"{who} leaves {some(names)} as they were: {why} reads them." for why, names in reasons.items()]
