"""Convert: a prepared graph into integers with quantise and dequantise nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from trimtab.compress.quantise.insert import (
    SCALE,
    ZERO,
    FakeTensor,
    FakeWeight,
    finished,
    levels,
    register,
    tensors_of,
    weights_of,
)
from trimtab.compress.quantise.ranges import SMALLEST, floored
from trimtab.graph.model import Graph

_ATEN = torch.ops.aten
_HIGHEST = 2**31 - 1
_EIGHT_BITS = 255


def integers(graph: Graph) -> Graph:
    """A prepared graph with integer weights, and quantise and dequantise nodes around what is integer.

    A weight keeps its name and becomes an int8 buffer of levels; beside it stand `<name>_scale` and
    `<name>_zero_point`. Each quantised tensor is quantised once, and dequantised for each reader: the
    form in which runtimes find what to fuse. The result evaluates; it does not train.

    Source: Jacob et al. (2018), section 2; ONNX operators QuantizeLinear and DequantizeLinear.
    """
    # registers torch.ops.quantized_decomposed
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    result = graph.copy()
    weights = {fake.node: fake for fake in weights_of(result)}
    tensors = {fake.node: fake for fake in tensors_of(result)}
    for node in list(result.nodes(_ATEN.linear.default)):
        _integer_bias(result, node, weights, tensors)
    for tensor in tensors.values():
        _integer_tensor(result, tensor)
    for weight in weights.values():
        _integer_weight(result, weight)
    return finished(result)


def _step(graph: Graph, fake: FakeTensor) -> tuple[float, int]:
    """Scale and zero point of an activation."""
    tensors = graph.tensors()
    return max(float(tensors[str(fake.scale)].detach().abs()), SMALLEST), round(float(tensors[str(fake.zero)]))


def _integer_bias(
    graph: Graph, node: Node, weights: dict[Node, FakeWeight], activations: dict[Node, FakeTensor]
) -> None:
    """The bias of a linear layer on [N, features] in 32 bits at the scale of input times weight.

    Only so do runtimes take the layer as an integer matrix product with a floating-point result. They do
    this to convolutions' biases by themselves. A bias too large for its scale stays as it is.
    """
    parts: tuple[Any, ...] = (*node.args, None)[:3]
    fake, weight, bias = activations.get(parts[0]), weights.get(parts[1]), parts[2]
    if fake is None or weight is None or bias is None or fake.high != _EIGHT_BITS or weight.group:
        return
    name, tensors = str(bias.target), graph.tensors()
    if fake.source.meta["val"].ndim != 2 or name not in tensors or len(bias.users) > 1:
        return
    size = len(tensors[name])
    scale = (floored(tensors[weight.scale].detach().abs()).expand(size) * _step(graph, fake)[0]).contiguous()
    values = torch.round(tensors[name].detach().double() / scale.double())
    if float(values.abs().max()) > _HIGHEST:
        return
    register(graph, name, values.to(torch.int32))
    register(graph, name + SCALE, scale)
    register(graph, name + ZERO, torch.zeros(size, dtype=torch.int32, device=scale.device))
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    with nodes.inserting_before(node):
        channels = (nodes.get_attr(name), nodes.get_attr(name + SCALE), nodes.get_attr(name + ZERO))
        settings = (0, -_HIGHEST - 1, _HIGHEST, torch.int32)
        value = nodes.call_function(ops.dequantize_per_channel.default, (*channels, *settings))
    node.replace_input_with(bias, value)


def _integer_tensor(graph: Graph, fake: FakeTensor) -> None:
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    settings = (*_step(graph, fake), fake.low, fake.high, torch.uint8)
    with nodes.inserting_before(fake.node):
        stored = nodes.call_function(ops.quantize_per_tensor.default, (fake.source, *settings))
    for user in list(fake.node.users):
        with nodes.inserting_before(user):
            value = nodes.call_function(ops.dequantize_per_tensor.default, (stored, *settings))
        user.replace_input_with(fake.node, value)
    nodes.erase_node(fake.node)


def _integer_weight(graph: Graph, fake: FakeWeight) -> None:
    nodes, ops, tensors = graph.net.graph, torch.ops.quantized_decomposed, graph.tensors()
    weight, scale = tensors[fake.name].detach(), floored(tensors[fake.scale].detach().abs())
    register(graph, fake.name, levels(weight, scale, fake).to(torch.int8))
    with nodes.inserting_before(fake.node):
        stored = nodes.get_attr(fake.name)
        if fake.axis is None:
            value = nodes.call_function(
                ops.dequantize_per_tensor.default, (stored, float(scale[0]), 0, fake.low, fake.high, torch.int8)
            )
        else:
            shape = (len(weight), -1) if fake.group else (-1,)
            register(graph, fake.name + SCALE, scale.reshape(shape).contiguous())
            zero = torch.zeros(scale.numel(), dtype=torch.int8, device=scale.device).reshape(shape)
            register(graph, fake.name + ZERO, zero)
            places = (nodes.get_attr(fake.name + SCALE), nodes.get_attr(fake.name + ZERO))
            if fake.group:
                settings: tuple[Any, ...] = (fake.low, fake.high, torch.int8, fake.group, torch.float32)
                value = nodes.call_function(ops.dequantize_per_channel_group.default, (stored, *places, *settings))
            else:
                settings = (fake.axis, fake.low, fake.high, torch.int8)
                value = nodes.call_function(ops.dequantize_per_channel.default, (stored, *places, *settings))
    fake.node.replace_all_uses_with(value)
