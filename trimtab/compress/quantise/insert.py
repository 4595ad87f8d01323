"""Insert: fake quantisation that trains, and its conversion into integers with Q/DQ nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.ranges import NARROWEST, SMALLEST, Affine, floored
from trimtab.graph.model import Graph, shaped

_ATEN = torch.ops.aten
FAKE = _ATEN.fake_quantize_per_tensor_affine.default
FAKE_WEIGHT = _ATEN.fake_quantize_per_channel_affine.default
CLIP, SCALE, ZERO = "_clip", "_scale", "_zero_point"
"""What is appended to a weight's name: its clip in training, its scale and zero point in integers."""


@dataclass(frozen=True)
class WeightRange:
    """How a weight is quantised.

    Args:
        axis: its output-channel dimension.
        clip: the highest quantised value as a share of max abs(w): [C] by channel, [1] for the whole.
        top: the highest level; the lowest is -top.
    """

    axis: int
    clip: Tensor
    top: int

    def scale(self, weight: Tensor) -> Tensor:
        """max abs(w) * clip / top: [C]."""
        channels = weight.shape[self.axis]
        return floored(largest(weight, self) * (self.clip / self.top)).expand(channels)


def largest(weight: Tensor, how: WeightRange) -> Tensor:
    """max abs(w): [C] by channel, [1] for the whole."""
    size = weight.detach().abs()
    return size.amax(_dims(weight, how)) if len(how.clip) > 1 else size.amax().reshape(1)


def _dims(weight: Tensor, how: WeightRange) -> list[int]:
    return [d for d in range(weight.ndim) if d != how.axis]


def fake_quantised(graph: Graph, tensors: Mapping[str, Affine], weights: Mapping[str, WeightRange]) -> Graph:
    """The graph with the chosen tensors rounded to their levels, in floating point, so that it trains.

    Forward: x -> (q - z) s (eq. 11). Backward: the gradient passes where x is in range, else it is 0
    (straight-through, eq. 12). Activations keep their calibrated scale; a weight's scale follows the
    weight as it trains, with the calibrated clip held.

    Args:
        graph: evaluating, batch norm folded; copied.
        tensors: by node name, how to quantise.
        weights: by parameter name, how to quantise.

    Source: Jacob et al. (2018), section 3; Bengio et al. (2013), section 2.3, for the gradient.
    """
    result = graph.copy()
    nodes = result.net.graph
    named = {n.name: n for n in nodes.nodes}
    for name, how in tensors.items():
        node = named[name]
        with nodes.inserting_after(node):
            rounded = nodes.call_function(FAKE, (node, how.scale, how.zero_point, how.low, how.high))
        node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)
    for weight, kind in weights.items():
        _fake_weight(result, weight, kind)
    return _finished(result)


def _fake_weight(graph: Graph, weight: str, how: WeightRange) -> None:
    nodes, value = graph.net.graph, graph.tensors()[weight]
    channels = value.shape[how.axis]
    register(graph, weight + CLIP, how.clip / how.top)
    register(graph, weight + ZERO, torch.zeros(channels, dtype=torch.int32))
    readers = nodes.find_nodes(op="get_attr", target=weight)
    with nodes.inserting_before(_first_user(nodes, readers)):
        own = nodes.get_attr(weight)
        size = nodes.call_function(_ATEN.abs.default, (nodes.call_function(_ATEN.detach.default, (own,)),))
        dims = _dims(value, how) if len(how.clip) > 1 else list(range(value.ndim))
        most = nodes.call_function(_ATEN.amax.default, (size, dims))
        scale = nodes.call_function(_ATEN.mul.Tensor, (most, nodes.get_attr(weight + CLIP)))
        floor = nodes.call_function(
            _ATEN.mul.Tensor, (nodes.call_function(_ATEN.amax.default, (scale, [0])), NARROWEST)
        )
        scale = nodes.call_function(_ATEN.maximum.default, (scale, floor))
        scale = nodes.call_function(_ATEN.clamp_min.default, (scale, SMALLEST))
        scale = nodes.call_function(_ATEN.expand.default, (scale, [channels]))
        zero = nodes.get_attr(weight + ZERO)
        rounded = nodes.call_function(FAKE_WEIGHT, (own, scale, zero, how.axis, -how.top, how.top))
    for reader in readers:
        reader.replace_all_uses_with(rounded)
        nodes.erase_node(reader)


def _first_user(nodes: Any, readers: Any) -> Node:
    users = {user for reader in readers for user in reader.users}
    first: Node = next(n for n in nodes.nodes if n in users)
    return first


def integers(graph: Graph) -> Graph:
    """A fake-quantised graph with integer weights, and quantise and dequantise nodes around what is integer.

    A weight keeps its name and becomes an int8 buffer; beside it stand `<name>_scale` and
    `<name>_zero_point`. Each quantised tensor is quantised once, and dequantised for each reader: the
    form in which runtimes find what to fuse. The result evaluates; it does not train.

    Source: Jacob et al. (2018), section 2; ONNX operators QuantizeLinear and DequantizeLinear.
    """
    # registers torch.ops.quantized_decomposed
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    result = graph.copy()
    for node in list(result.nodes(_ATEN.linear.default)):
        _integer_bias(result, node)
    for node in list(result.nodes(FAKE)):
        _integer_tensor(result, node)
    for node in list(result.nodes(FAKE_WEIGHT)):
        _integer_weight(result, node)
    return _finished(result)


def _integer_bias(graph: Graph, node: Node) -> None:
    """The bias of a linear layer on [N, features] in 32 bits at the scale of input times weight.

    Only so do runtimes take the layer as an integer matrix product with a floating-point result. They do
    this to convolutions' biases by themselves. A bias too large for its scale stays as it is.
    """
    source, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else None
    parts: tuple[Any, ...] = (source, weight, bias)
    if not all(isinstance(n, Node) for n in parts) or parts[0].target is not FAKE or parts[1].target is not FAKE_WEIGHT:
        return
    name, tensors = str(parts[2].target), graph.tensors()
    if source.meta["val"].ndim != 2 or name not in tensors or len(parts[2].users) > 1:  # type: ignore[union-attr]
        return
    parameter, axis, top = str(parts[1].args[0].target), parts[1].args[3], parts[1].args[5]
    how = WeightRange(axis, tensors[parameter + CLIP] * top, top)
    scale = (how.scale(tensors[parameter].detach()) * parts[0].args[1]).contiguous()
    levels = torch.round(tensors[name].detach().double() / scale.double())
    highest = 2**31 - 1
    if float(levels.abs().max()) > highest:
        return
    register(graph, name, levels.to(torch.int32))
    register(graph, name + SCALE, scale)
    register(graph, name + ZERO, torch.zeros(len(scale), dtype=torch.int32))
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    with nodes.inserting_before(node):
        channels = (nodes.get_attr(name), nodes.get_attr(name + SCALE), nodes.get_attr(name + ZERO))
        settings = (0, -highest - 1, highest, torch.int32)
        value = nodes.call_function(ops.dequantize_per_channel.default, (*channels, *settings))
    node.replace_input_with(parts[2], value)


def _integer_tensor(graph: Graph, node: Node) -> None:
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    source, *how = node.args
    settings = (*how, torch.uint8)
    with nodes.inserting_before(node):
        levels = nodes.call_function(ops.quantize_per_tensor.default, (source, *settings))
    for user in list(node.users):
        with nodes.inserting_before(user):
            value = nodes.call_function(ops.dequantize_per_tensor.default, (levels, *settings))
        user.replace_input_with(node, value)
    nodes.erase_node(node)


def _integer_weight(graph: Graph, node: Node) -> None:
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    name, axis, low, high = str(node.args[0].target), *node.args[3:]  # type: ignore[union-attr]
    tensors = graph.tensors()
    weight, clip = tensors[name].detach(), tensors[name + CLIP]
    how = WeightRange(int(axis), clip * high, int(high))  # type: ignore[arg-type, operator]
    scale = how.scale(weight).contiguous()
    shape = [-1 if d == how.axis else 1 for d in range(weight.ndim)]
    # multiplied by the inverse, as the fake quantisation does: both must round alike
    levels = torch.round(weight * (1 / scale).reshape(shape)).clamp(-how.top, how.top).to(torch.int8)
    register(graph, name, levels)
    with nodes.inserting_before(node):
        source = nodes.get_attr(name)
        if len(clip) > 1:
            register(graph, name + SCALE, scale)
            register(graph, name + ZERO, torch.zeros(len(scale), dtype=torch.int8))
            channels = (nodes.get_attr(name + SCALE), nodes.get_attr(name + ZERO), axis)
            value = nodes.call_function(ops.dequantize_per_channel.default, (source, *channels, low, high, torch.int8))
        else:
            step = float(scale[0])
            value = nodes.call_function(ops.dequantize_per_tensor.default, (source, step, 0, low, high, torch.int8))
    node.replace_all_uses_with(value)
    nodes.erase_node(node)


def register(graph: Graph, name: str, value: Tensor) -> None:
    """Put a buffer under a dotted name of a graph that is the caller's own, in place of what is there."""
    path, _, leaf = name.rpartition(".")
    owner = graph.net.get_submodule(path)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    owner.register_buffer(leaf, value)


def _finished(graph: Graph) -> Graph:
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
