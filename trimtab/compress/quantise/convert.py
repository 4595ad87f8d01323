"""Convert: a prepared graph into integers with quantise and dequantise nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trimtab.compress.quantise.dynamic import dynamic_integers
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
from trimtab.compress.quantise.low_bits import LowWeight, is_narrow, low_levels, low_weights_of, narrowed
from trimtab.compress.quantise.norms import fold_into_scales, rescaled
from trimtab.compress.quantise.ranges import SMALLEST
from trimtab.graph.fuse import fold_batch_norm
from trimtab.graph.model import Graph
from trimtab.run.fusable import INTEGER

_ATEN = torch.ops.aten
_HIGHEST = 2**31 - 1
_SIX = 6.0
_CLIPPED = frozenset({_ATEN.relu6.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default})
_PASSING = INTEGER.shares | INTEGER.concats


def integers(graph: Graph) -> Graph:
    """A prepared graph with integer weights, and quantise and dequantise nodes around what is integer.

    A weight keeps its name and becomes an int8 buffer of levels; beside it stand `<name>_scale` and
    `<name>_zero_point`. Each quantised tensor is quantised once, and dequantised for each reader: the
    form in which runtimes find what to fuse. The result evaluates; it does not train.

    Source: Jacob et al. (2018), section 2; ONNX operators QuantizeLinear and DequantizeLinear.
    """
    # registers torch.ops.quantized_decomposed
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    result = fold_batch_norm(graph)
    ints = {fake.node: fake for fake in weights_of(result)}
    low = {fake.node: fake for fake in low_weights_of(result)}
    channels = [node for node, fake in ints.items() if fake.axis == 0]
    channels += [node for node, fake in low.items() if fake.axis == 0]
    factors = fold_into_scales(result, channels)
    tensors = tensors_of(result)
    steps = _steps(result, tensors)
    weights = {node: _stored(result, fake, factors.get(node)) for node, fake in ints.items()}
    weights |= {node: _few(result, fake, factors.get(node)) for node, fake in low.items() if not is_narrow(fake.kind)}
    for node in list(result.nodes(_ATEN.linear.default, _ATEN.addmm.default)):
        _integer_bias(result, node, weights, steps)
    for tensor in tensors:
        _integer_tensor(result, tensor, steps)
    for node, weight in weights.items():
        _integer_weight(result, node, weight)
    for node, fake in low.items():
        if is_narrow(fake.kind):
            _narrow_weight(result, node, fake)
    return finished(result)


@dataclass(frozen=True)
class _Stored:
    """A weight in integers: its parameter's name, levels, scales, and how these belong together."""

    name: str
    levels: Tensor
    scale: Tensor
    axis: int | None
    low: int
    high: int
    group: int = 0


def _stored(graph: Graph, fake: FakeWeight, factor: Tensor | None) -> _Stored:
    tensors = graph.tensors()
    weight, scale = tensors[fake.name].detach(), tensors[fake.scale].detach().abs().clamp_min(SMALLEST)
    values, scale = rescaled(levels(weight, scale, fake), scale, factor, fake.axis, keep=False)
    return _Stored(fake.name, values, scale, fake.axis, fake.low, fake.high, fake.group)


def _few(graph: Graph, fake: LowWeight, factor: Tensor | None) -> _Stored:
    values, scale = low_levels(graph.tensors()[fake.name].detach(), fake.kind, fake.axis)
    # a binary weight has no level 0 to fall to
    values, scale = rescaled(values, scale, factor, fake.axis, keep=fake.kind == "binary")
    return _Stored(fake.name, values, scale, fake.axis, -1, 1)


def _steps(graph: Graph, tensors: Collection[FakeTensor]) -> dict[Node, tuple[float, int]]:
    """Scale and zero point of each activation that has its own, by its fake-quantised node."""
    values, limits, found = graph.tensors(), _limits(tensors), {}
    for fake in tensors:
        if fake.scale is not None:
            zero = round(float(values[str(fake.zero)]))
            most = limits[fake.scale] / max(fake.high - zero, 1)
            found[fake.node] = max(min(float(values[fake.scale].detach().abs()), most), SMALLEST), zero
    return found


def _limits(tensors: Collection[FakeTensor]) -> dict[str | None, float]:
    """The highest value that a scale may stand for: a relu6 is fused only where its range ends at 6 or before.

    A learned scale may have grown beyond; the values have not.
    """
    limits: dict[str | None, float] = {}
    for fake in tensors:
        source: Any = fake.source
        known = limits.get(fake.scale, 0.0)
        if source.target in _CLIPPED:
            limits[fake.scale] = max(known, float(source.args[2]) if len(source.args) > 2 else _SIX)
        elif source.target in _PASSING:
            limits.setdefault(fake.scale, 0.0)
        else:
            limits[fake.scale] = float("inf")
    return {name: limit or float("inf") for name, limit in limits.items()}


def _integer_bias(
    graph: Graph, node: Node, weights: Mapping[Node, _Stored], steps: Mapping[Node, tuple[float, int]]
) -> None:
    """The bias of a linear layer in 32 bits at the scale of input times weight.

    Only so do runtimes take the layer as an integer matrix product with a floating-point result; ONNX Runtime
    makes a Gemm of one on sequences too, once it knows their shape. They do this to convolutions' biases by
    themselves. A bias too large for its scale stays as it is.
    """
    kind = INTEGER.weighted[node.target]
    parts: tuple[Any, ...] = (*node.args, None)[:3]
    fake, weight, bias = parts[kind.source], weights.get(parts[kind.weight]), parts[kind.bias]
    if fake not in steps or weight is None or bias is None or weight.group:
        return  # no runtime multiplies these in integers with a scale known before
    name, tensors = str(bias.target), graph.tensors()
    if name not in tensors or len(bias.users) > 1:
        return
    size = len(tensors[name])
    scale = (weight.scale.expand(size) * steps[fake][0]).contiguous()
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


def _integer_tensor(graph: Graph, fake: FakeTensor, steps: Mapping[Node, tuple[float, int]]) -> None:
    if fake.scale is None:
        dynamic_integers(graph, fake)
        return
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    settings = (*steps[fake.node], fake.low, fake.high, torch.uint8)
    with nodes.inserting_before(fake.node):
        stored = nodes.call_function(ops.quantize_per_tensor.default, (fake.source, *settings))
    for user in list(fake.node.users):
        with nodes.inserting_before(user):
            value = nodes.call_function(ops.dequantize_per_tensor.default, (stored, *settings))
        user.replace_input_with(fake.node, value)
    nodes.erase_node(fake.node)


def _integer_weight(graph: Graph, node: Node, weight: _Stored) -> None:
    nodes, ops = graph.net.graph, torch.ops.quantized_decomposed
    register(graph, weight.name, weight.levels.to(torch.int8).contiguous())
    ends = (weight.low, weight.high, torch.int8)
    with nodes.inserting_before(node):
        stored = nodes.get_attr(weight.name)
        if weight.axis is None:
            settings: tuple[Any, ...] = (float(weight.scale), 0, *ends)
            value = nodes.call_function(ops.dequantize_per_tensor.default, (stored, *settings))
        else:
            places = _scales(graph, weight)
            if weight.group:
                settings = (*places, *ends, weight.group, torch.float32)
                value = nodes.call_function(ops.dequantize_per_channel_group.default, (stored, *settings))
            else:
                settings = (*places, weight.axis, *ends)
                value = nodes.call_function(ops.dequantize_per_channel.default, (stored, *settings))
    node.replace_all_uses_with(value)


def _scales(graph: Graph, weight: _Stored) -> tuple[Node, Node]:
    """Scales and zero points beside a weight: [C], or [C, groups]."""
    shape = (len(weight.levels), -1) if weight.group else (-1,)
    scale = weight.scale.reshape(shape).contiguous()
    register(graph, weight.name + SCALE, scale)
    register(graph, weight.name + ZERO, torch.zeros(scale.shape, dtype=torch.int8, device=scale.device))
    nodes = graph.net.graph
    return nodes.get_attr(weight.name + SCALE), nodes.get_attr(weight.name + ZERO)


def _narrow_weight(graph: Graph, node: Node, fake: LowWeight) -> None:
    """The rounded values in float32: files hold what all values fit into."""
    register(graph, fake.name, narrowed(graph.tensors()[fake.name].detach(), fake.kind))
    with graph.net.graph.inserting_before(node):
        stored = graph.net.graph.get_attr(fake.name)
    node.replace_all_uses_with(stored)
