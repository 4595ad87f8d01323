"""Integers: a quantised graph in the form that ExecuTorch's Arm backend takes whole: each operator between integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from trimtab.core.errors import InputError
from trimtab.graph.fuse import fold_batch_norm
from trimtab.graph.model import Graph, place, shaped
from trimtab.graph.signed import is_quantised, signed
from trimtab.graph.simplify import pruned, simplify

_ATEN = torch.ops.aten
_CLIPS = {
    _ATEN.relu.default: (0.0, float("inf")),
    _ATEN.relu_.default: (0.0, float("inf")),
    _ATEN.relu6.default: (0.0, 6.0),
}
_TANHS = (_ATEN.hardtanh.default, _ATEN.hardtanh_.default)
_WEIGHTED = (
    *(_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding),
    _ATEN.linear.default,
)
_CLOSE = 1e-6
_HIGHEST = 2**31 - 1
_WIDEST = 3
"""The widest stride of a convolution on Ethos-U55."""


@dataclass(frozen=True)
class _Operators:
    """The three that stand around integers."""

    quantise: Any
    dequantise: Any
    by_channel: Any


def _operators() -> _Operators:
    # registers torch.ops.quantized_decomposed
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    return _Operators(
        ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default, ops.dequantize_per_channel.default
    )


def whole(graph: Graph) -> Graph:
    """The same numbers with every operator between dequantise and quantise nodes, and with int32 biases.

    Activations become int8. A clip that the levels behind it hold anyway is taken out; another one gets levels of its
    own: q(clip(x)) = clip(q(x)), as rounding to levels keeps order. Means over an image become average pools. Biases
    are rounded to s_input s_weight, in 32 bits.

    Args:
        graph: quantised; it is not changed.

    Raises:
        InputError: the graph is not quantised.
    """
    if not is_quantised(graph):
        raise InputError("Ethos-U: the network is in floating point", do="Quantise it first: --with 'quantise(int8)'.")
    own = signed(fold_batch_norm(simplify(graph.to("cpu"))))
    for node in list(own.nodes(_operators().quantise)):
        _clip(own, node)
    for node in list(own.nodes(_ATEN.mean.dim, _ATEN.adaptive_avg_pool2d.default)):
        _pool(own, node)
    for node in list(own.nodes(_ATEN.slice.Tensor)):
        _select(own, node)
    for node in list(own.nodes(*_WEIGHTED)):
        _bias(own, node)
    own.net.recompile()
    return shaped(pruned(own))


def between_integers(node: Node) -> bool:
    """Whether an operator reads dequantised tensors only, and all that it gives is quantised."""
    reads = [n for n in node.all_input_nodes if n.op == "call_function"]
    return (
        bool(reads)
        and len(reads) == len(node.all_input_nodes)
        and all(n.target in (_operators().dequantise, _operators().by_channel) for n in reads)
        and all(user.target is _operators().quantise for user in node.users)
    )


def _levels(graph: Graph, source: Node, settings: tuple[Any, ...]) -> Node:
    """Quantise and dequantise behind a node; gives the dequantised value."""
    nodes = graph.net.graph
    quantised = nodes.call_function(_operators().quantise, (source, *settings))
    return nodes.call_function(_operators().dequantise, (quantised, *settings))


def _clip(graph: Graph, quantise: Node) -> None:
    clip, settings = quantise.args[0], quantise.args[1:]
    if not isinstance(clip, Node) or clip.target not in (*_CLIPS, *_TANHS):
        return
    source: Any = clip.args[0]
    if source.target is _operators().dequantise or len(clip.users) > 1:
        return
    scale, zero, low, high = (float(value) for value in settings[:4])  # type: ignore[arg-type]
    given: Any = (*clip.args[1:3], *(-1.0, 1.0)[len(clip.args) - 1 :])
    least, most = _CLIPS.get(clip.target, given)
    slack = _CLOSE * scale
    if least <= (low - zero) * scale + slack and (high - zero) * scale <= most + slack:
        quantise.replace_input_with(clip, source)
    else:
        with graph.net.graph.inserting_before(clip):
            value = _levels(graph, source, settings)
        clip.replace_input_with(source, value)


def _pool(graph: Graph, node: Node) -> None:
    """A mean over an image, or an adaptive pool whose windows are all alike, as an average pool."""
    source: Any = node.args[0]
    shape = source.meta["val"].shape
    users = list(node.users)
    if len(shape) != 4 or len(users) != 1 or users[0].target is not _operators().quantise:
        return
    flat = False
    if node.target is _ATEN.mean.dim:
        dims = sorted(int(d) % 4 for d in node.args[1])  # type: ignore[union-attr, arg-type]
        if dims != [2, 3]:
            return
        out = [1, 1]
        flat = not (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    else:
        out = [int(n) for n in node.args[1]]  # type: ignore[union-attr, arg-type]
        if shape[2] % out[0] or shape[3] % out[1]:
            return
    window = [shape[2] // out[0], shape[3] // out[1]]
    nodes = graph.net.graph
    with nodes.inserting_before(node):
        value = nodes.call_function(_ATEN.avg_pool2d.default, (source, window, [1, 1] if out == [1, 1] else window))
        if flat:
            value = _levels(graph, value, users[0].args[1:])
            value = nodes.call_function(_ATEN.flatten.using_ints, (value, 1))
    node.replace_all_uses_with(value)
    nodes.erase_node(node)


def _select(graph: Graph, node: Node) -> None:
    """Every second pixel of an image, with empty channels added or not, as a convolution with ones for weights.

    The compiler copies such slices row by row: on ResNet-20 they take more time than all its convolutions.
    """
    if _takes_all(node):
        for quantise in [user for user in node.users if user.target is _operators().quantise]:
            quantise.replace_all_uses_with(node.args[0].args[0])  # type: ignore[union-attr, arg-type]
        return
    strides, last, after = [1, 1], node, node
    while (step := _stride(after)) is not None:
        strides[step[0] - 2] *= step[1]
        last, following = after, _next(after)
        if following is None:
            break
        after = following
    channels, before, behind = int(node.meta["val"].shape[1]), 0, 0
    if last is not after and (room := _channels_added(after)) is not None:
        last, (before, behind) = after, room
    if strides == [1, 1] or max(strides) > _WIDEST or len(node.meta["val"].shape) != 4:
        return
    name = f"select_{node.name}"
    weight = torch.zeros(before + channels + behind, channels, 1, 1, dtype=torch.int8)
    weight[range(before, before + channels), range(channels)] = 1
    place(graph.net, name, weight)
    nodes = graph.net.graph
    with nodes.inserting_before(last):
        ones = nodes.call_function(_operators().dequantise, (nodes.get_attr(name), 1.0, 0, -127, 127, torch.int8))
        value = nodes.call_function(_ATEN.conv2d.default, (node.args[0], ones, None, strides))
    last.replace_all_uses_with(value)
    nodes.erase_node(last)


def _takes_all(node: Node) -> bool:
    """Whether a slice between integers gives all that it reads."""
    source: Any = node.args[0]
    return between_integers(node) and source.meta["val"].shape == node.meta["val"].shape


def _stride(node: Node) -> tuple[int, int] | None:
    """Dimension and step of a slice that takes every so many rows or columns of an image."""
    if node.target is not _ATEN.slice.Tensor or node.meta["val"].ndim != 4:
        return None
    given: tuple[Any, ...] = node.args
    defaults: list[Any] = [0, None, None, 1]
    source, dim, start, end, step = [*given, *defaults[len(given) - 1 :]]
    size = int(source.meta["val"].shape[dim])
    if dim % 4 < 2 or start not in (None, 0) or not (end is None or end >= size):
        return None
    return dim % 4, int(step)


def _next(node: Node) -> Node | None:
    """The only operator that reads a node's result, behind the levels between the two."""
    for operator in (_operators().quantise, _operators().dequantise):
        users = list(node.users)
        if len(users) != 1 or users[0].target is not operator:
            return None
        node = users[0]
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _channels_added(node: Node) -> tuple[int, int] | None:
    """Empty channels that a padding adds before and behind, where it adds nothing else."""
    if node.target not in (_ATEN.pad.default, _ATEN.constant_pad_nd.default):
        return None
    sides = [int(n) for n in node.args[1]]  # type: ignore[union-attr, arg-type]
    mode = node.args[2] if node.target is _ATEN.pad.default and len(node.args) > 2 else "constant"
    value = node.args[3] if node.target is _ATEN.pad.default and len(node.args) > 3 else None
    value = node.args[2] if node.target is _ATEN.constant_pad_nd.default and len(node.args) > 2 else value
    if len(sides) != 6 or any(sides[:4]) or min(sides[4:]) < 0 or mode != "constant" or value not in (None, 0, 0.0):
        return None
    return sides[4], sides[5]


def _bias(graph: Graph, node: Node) -> None:
    """A bias in floats as integers at the scale of the sums."""
    source, weight = node.args[0], node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    parts: tuple[Any, ...] = (source, weight, bias)
    if (
        not all(isinstance(n, Node) for n in parts)
        or parts[2].op != "get_attr"
        or parts[0].target is not _operators().dequantise
    ):
        return
    tensors, name = graph.tensors(), str(parts[2].target)
    value = tensors[name].detach().double()
    if parts[1].target is _operators().by_channel:
        steps = tensors[str(parts[1].args[1].target)].double() * parts[0].args[1]
    else:
        steps = torch.full_like(value, parts[1].args[1] * parts[0].args[1])
    steps = steps.float()
    levels = torch.round(value / steps.double())
    if float(levels.abs().max()) > _HIGHEST:
        return
    stored = f"{name}_levels_{node.name}"
    place(graph.net, stored, levels.to(torch.int32))
    place(graph.net, f"{stored}_scale", steps.contiguous())
    place(graph.net, f"{stored}_zero_point", torch.zeros(len(steps), dtype=torch.int32))
    nodes = graph.net.graph
    with nodes.inserting_before(node):
        names = (nodes.get_attr(stored), nodes.get_attr(f"{stored}_scale"), nodes.get_attr(f"{stored}_zero_point"))
        fresh = nodes.call_function(_operators().by_channel, (*names, 0, -_HIGHEST - 1, _HIGHEST, torch.int32))
    node.args = (node.args[0], node.args[1], fresh, *node.args[3:])
