"""Insert: fake quantisation that computes on the grid of levels, in floating point, and trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from trimtab.compress.quantise.ranges import Affine
from trimtab.graph.model import EXAMPLE_BATCH, Graph, place, shaped

_ATEN = torch.ops.aten
FAKE = _ATEN._fake_quantize_learnable_per_tensor_affine.default
FAKE_CHANNEL = _ATEN._fake_quantize_learnable_per_channel_affine.default
SCALE, ZERO = "_scale", "_zero_point"
"""What is appended to the name of a weight, or of an activation's node: its scale and its zero point."""


@dataclass(frozen=True)
class WeightRange:
    """How a weight is quantised: symmetric, with the zero point 0.

    Args:
        scale: [C] by channel, [1] for the whole, [C * groups] by group of a linear layer's inputs.
        axis: the output-channel dimension; None for one scale.
        low: the lowest level.
        high: the highest level.
        group: inputs that share a scale; 0 where all of a channel do.
    """

    scale: Tensor
    axis: int | None
    low: int
    high: int
    group: int = 0


@dataclass(frozen=True)
class FakeWeight:
    """A fake-quantised weight in a prepared graph.

    Args:
        name: of the parameter, in floating point.
        node: what the layers read: the weight on its grid.
        scale: name of the parameter that holds its scales, shaped as in `WeightRange`.
        axis: the output-channel dimension; None for one scale.
        low: the lowest level.
        high: the highest level.
        group: inputs that share a scale; 0 where all of a channel do.
    """

    name: str
    node: Node
    scale: str
    axis: int | None
    low: int
    high: int
    group: int


@dataclass(frozen=True)
class FakeTensor:
    """A fake-quantised activation in a prepared graph.

    Args:
        node: the activation on its grid.
        source: the activation before.
        scale: name of the parameter [1] that holds its scale; None where each batch gives its own.
        zero: name of the buffer [1] that holds its zero point; None where each batch gives its own.
        low: the lowest level.
        high: the highest level.
    """

    node: Node
    source: Node
    scale: str | None
    zero: str | None
    low: int
    high: int


def fake_quantised(
    graph: Graph,
    tensors: Mapping[str, str],
    how: Mapping[str, Affine],
    weights: Mapping[str, WeightRange],
    readers: Mapping[str, Sequence[str]] | None = None,
) -> Graph:
    """The graph with the chosen tensors rounded to their levels, in floating point, so that it trains.

    Forward: x -> (clamp(round(x / s) + z, low, high) - z) s (eq. 11). Backward: the gradient passes to x
    where it is in range, else it is 0 (straight-through, eq. 12); a scale is a parameter, and gets

        ds = g sum(dy (round(x / s) - x / s in range, low - z or high - z outside)),  g = 1 / sqrt(n high)

    where n values share the scale (of one sample, for activations). Values up to half a step beyond the last
    level round to it, and count as in range here; in the paper they do not.

    Args:
        graph: evaluating; copied.
        tensors: for each quantised activation's node name, the one whose range it shares.
        how: by the name that ranges are shared under, how to quantise.
        weights: by parameter name, how to quantise.
        readers: by node name, those that read the rounded tensor where not all do (see `Annotation`).

    Source: Esser et al. (2020), Learned Step Size Quantization, equations 1 to 3 and section 2.2, and Bhalgat
    et al. (2020), LSQ+, for activations with a zero point (ours is fixed); Bengio et al. (2013), section 2.3.
    """
    result = graph.copy()
    named = {n.name: n for n in result.net.graph.nodes}
    names = {first: _free(result, first) for first in dict.fromkeys(tensors.values())}
    for first, name in names.items():
        place(result.net, name + SCALE, nn.Parameter(torch.tensor([how[first].scale], device=graph.device)))
        place(result.net, name + ZERO, torch.tensor([float(how[first].zero_point)], device=graph.device))
    for node, first in tensors.items():
        _fake_tensor(result, named[node], names[first], how[first], (readers or {}).get(node))
    for weight, kind in weights.items():
        _fake_weight(result, weight, kind)
    return finished(result)


def _free(graph: Graph, name: str) -> str:
    while any(name + end in graph.tensors() for end in (SCALE, ZERO)):
        name += "_"
    return name


def _fake_tensor(graph: Graph, node: Node, name: str, how: Affine, readers: Sequence[str] | None) -> None:
    nodes, value = graph.net.graph, node.meta["val"]
    # of one sample: a mean over the batch in the loss has divided the gradient by its size already
    count = max(value.numel() // EXAMPLE_BATCH, 1)
    with nodes.inserting_after(node):
        zero = nodes.get_attr(name + ZERO)
    with nodes.inserting_after(node):
        scale = nodes.get_attr(name + SCALE)
    with nodes.inserting_after(zero):
        rounded = nodes.call_function(FAKE, (node, scale, zero, how.low, how.high, _factor(count, how.high)))
    chosen = {user for user in node.users if user is not rounded and (readers is None or user.name in readers)}
    node.replace_all_uses_with(rounded, delete_user_cb=chosen.__contains__)


def _factor(count: int, high: int) -> float:
    """The gradient scale of LSQ, section 2.2."""
    return float((count * high) ** -0.5)


def _fake_weight(graph: Graph, weight: str, how: WeightRange) -> None:
    nodes, value = graph.net.graph, graph.tensors()[weight]
    place(graph.net, weight + SCALE, nn.Parameter(how.scale.detach().float().clone()))
    place(graph.net, weight + ZERO, torch.zeros(len(how.scale), device=value.device))
    readers = nodes.find_nodes(op="get_attr", target=weight)
    factor = _factor(value.numel() // len(how.scale), how.high)
    with nodes.inserting_before(first_user(nodes, readers)):
        own = nodes.get_attr(weight)
        affine = (nodes.get_attr(weight + SCALE), nodes.get_attr(weight + ZERO))
        if how.group:
            rows = nodes.call_function(_ATEN.reshape.default, (own, [-1, how.group]))  # [C * groups, group]
            rounded = nodes.call_function(FAKE_CHANNEL, (rows, *affine, 0, how.low, how.high, factor))
            rounded = nodes.call_function(_ATEN.reshape.default, (rounded, list(value.shape)))
        elif how.axis is None:
            rounded = nodes.call_function(FAKE, (own, *affine, how.low, how.high, factor))
        else:
            rounded = nodes.call_function(FAKE_CHANNEL, (own, *affine, how.axis, how.low, how.high, factor))
    for reader in readers:
        reader.replace_all_uses_with(rounded)
        nodes.erase_node(reader)


def first_user(nodes: Any, readers: Any) -> Node:
    """The first node in order that reads one of some nodes."""
    users = {user for reader in readers for user in reader.users}
    first: Node = next(n for n in nodes.nodes if n in users)
    return first


def weights_of(prepared: Graph) -> tuple[FakeWeight, ...]:
    """The weights in integers of a prepared graph, in graph order, each once."""
    found = []
    for node in prepared.nodes(FAKE, FAKE_CHANNEL):
        source, scale, *rest = node.args
        grouped = isinstance(source, Node) and source.target is _ATEN.reshape.default
        own = source.args[0] if grouped else source  # type: ignore[union-attr]
        if not isinstance(own, Node) or own.op != "get_attr":
            continue
        channel = node.target is FAKE_CHANNEL
        low, high = int(rest[-3]), int(rest[-2])  # type: ignore[arg-type]
        axis = None if not channel else 0 if grouped else int(rest[1])  # type: ignore[arg-type]
        group = int(source.args[1][1]) if grouped else 0  # type: ignore[union-attr, index, arg-type]
        read = next(iter(node.users)) if grouped else node
        found.append(FakeWeight(str(own.target), read, str(scale.target), axis, low, high, group))  # type: ignore[union-attr]
    return tuple(found)


def tensors_of(prepared: Graph) -> tuple[FakeTensor, ...]:
    """The fake-quantised activations of a prepared graph, in graph order."""
    found = []
    for node in prepared.nodes(FAKE):
        parts: tuple[Any, ...] = node.args
        source, scale, zero, low, high = parts[:5]
        if source.op == "get_attr":
            continue
        own = scale.op == "get_attr"
        name, zeros = (str(scale.target), str(zero.target)) if own else (None, None)
        found.append(FakeTensor(node, source, name, zeros, int(low), int(high)))
    return tuple(found)


def spread(scale: Tensor, weight: Tensor, how: FakeWeight | WeightRange) -> Tensor:
    """Scales in a shape that broadcasts against the weight; by group: the weight's own shape."""
    if how.group:
        return scale.reshape(-1, 1).expand(-1, how.group).reshape(weight.shape)
    return scale.reshape([-1 if d == how.axis else 1 for d in range(weight.ndim)])


def rows_of(weight: Tensor, how: FakeWeight | WeightRange) -> Tensor:
    """The weight as [scales, values]: a row for each scale."""
    if how.group:
        return weight.reshape(-1, how.group)
    return weight.reshape(1, -1) if how.axis is None else weight.movedim(how.axis, 0).flatten(1)


def levels(weight: Tensor, scale: Tensor, how: FakeWeight | WeightRange) -> Tensor:
    """The level of each weight, as floating-point numbers: clamp(round(w / s), low, high).

    Multiplied by the inverse, as the fake quantisation does: both must round alike.
    """
    return torch.round(weight * (1 / spread(scale, weight, how))).clamp(how.low, how.high)


def register(graph: Graph, name: str, value: Tensor) -> None:
    """Put a buffer under a dotted name of a graph that is the caller's own, in place of what is there."""
    path, _, leaf = name.rpartition(".")
    owner = graph.net.get_submodule(path)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_buffer(leaf, value)


def finished(graph: Graph) -> Graph:
    """A graph whose nodes were edited in place: without what nothing reads, recompiled, with shapes."""
    nodes = graph.net.graph
    nodes.eliminate_dead_code()
    used = {str(n.target) for n in nodes.find_nodes(op="get_attr")}
    for name in graph.tensors():
        if name not in used:
            path, _, leaf = name.rpartition(".")
            delattr(graph.net.get_submodule(path), leaf)
    nodes.lint()
    graph.net.recompile()
    return shaped(graph)
