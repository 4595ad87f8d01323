"""Unpacked: a model whose constants are as a runtime has them once it has loaded the file, with nothing to decode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trimtab.run.pack import evaluated

Array = np.ndarray[Any, Any]

_MOST = 1 << 31
"""Numbers of a decoded constant."""
_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Where", "Equal", "Less", "Greater", "GreaterOrEqual", "And", "Or", "Not"),
    *("BitShift", "BitwiseAnd", "BitwiseOr"),
}
_ALIKE = {
    *("Cast", "Reshape", "Slice", "CumSum", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Neg"),
    *("GatherElements", "ScatterElements", "ScatterND", "Identity"),
}
"""Operators that give no more numbers than they take."""


def unpacked(model: Any) -> Any:
    """A copy in which every value decoded from constants alone is a constant; dequantised levels stay levels.

    Args:
        model: an onnx.ModelProto, its constants loaded; it may come from a stranger.
    """
    from onnx import ModelProto, numpy_helper

    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {t.name: t for t in graph.initializer}
    outputs = {v.name for v in graph.output}
    left = []
    for node in graph.node:
        value = None
        if node.output[0] not in outputs and all(name in constants for name in node.input if name):
            given = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
            value = evaluated(node, given) if _numbers(node, given) <= _MOST else None
        if value is None:
            left.append(node)
        else:
            constants[node.output[0]] = numpy_helper.from_array(value.copy(order="C"), node.output[0])
    read = {*outputs, *(name for node in left for name in _names(node))}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend(t for name, t in constants.items() if name in read)
    return copy


def _numbers(node: Any, given: dict[str, Array]) -> float:
    """How many numbers a decoding node gives, at most; infinite for any other node."""
    if node.domain or not given or len(node.output) != 1:
        return math.inf
    if node.op_type in _ALIKE:
        return max(sum(a.size for a in given.values()), 1)
    if node.op_type == "Gather":
        table, at = (given[name] for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return at.size * table.size / max(table.shape[axis], 1) if -table.ndim <= axis < table.ndim else math.inf
    if node.op_type not in _ELEMENTWISE:
        return math.inf
    try:
        return math.prod(np.broadcast_shapes(*(a.shape for a in given.values())))
    except ValueError:
        return math.inf


def _names(node: Any) -> set[str]:
    """Every name that a node or the graphs inside it read."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            found |= {v.name for v in inner.output}
            for each in inner.node:
                found |= _names(each)
    return found
