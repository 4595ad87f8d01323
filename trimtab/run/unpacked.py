"""Unpacked: a model whose constants are as a runtime has them once it has loaded the file, with nothing to decode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trimtab.core.errors import FileError

Array = np.ndarray[Any, Any]

_MOST = 1 << 31
"""Numbers that decoding may make, all nodes together."""
_SAME = {
    *("Cast", "Reshape", "Slice", "CumSum", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Neg", "Not", "Identity"),
    *("TopK", "ScatterElements", "ScatterND"),
}
"""Operators that give no more numbers than their first input has."""
_ELEMENTWISE = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less", "Greater", "GreaterOrEqual", "And", "Or"),
    *("BitShift", "BitwiseAnd", "BitwiseOr"),
}


def unpacked(model: Any) -> Any:
    """A copy in which every value decoded from constants alone is a constant; dequantised levels stay levels.

    Args:
        model: an onnx.ModelProto, its constants loaded; it may come from a stranger.

    Raises:
        FileError: the constants cannot be decoded, or would fill the memory.
    """
    from onnx import ModelProto, numpy_helper

    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {t.name: t for t in graph.initializer}
    decoding = _decoding(graph, constants)
    made = {name for node in decoding for name in node.output if name}
    left = [node for node in graph.node if not made & set(node.output)]
    read = {v.name for v in graph.output} | {name for node in left for name in _names(node)}
    for name, value in _computed(copy, decoding, sorted(made & read)).items():
        constants[name] = numpy_helper.from_array(value, name)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend(t for name, t in constants.items() if name in read)
    return copy


def _decoding(graph: Any, constants: dict[str, Any]) -> list[Any]:
    """The nodes that decode constants, in order.

    Raises:
        FileError: they make more numbers than memory holds.
    """
    sizes = {name: math.prod(t.dims) for name, t in constants.items()}
    outputs = {v.name for v in graph.output}
    found, total = [], 0
    for node in graph.node:
        given = [name for name in node.input if name]
        if node.domain or not given or any(name not in sizes for name in given) or outputs & set(node.output):
            continue
        size = _size(node, [sizes[name] for name in given], constants)
        if size is None:
            continue
        total += size
        if total > _MOST:
            raise FileError("read ONNX: constants", where=node.name or node.op_type, got=total, expected=_MOST)
        sizes |= {name: size for name in node.output if name}
        found.append(node)
    return found


def _size(node: Any, given: list[int], constants: dict[str, Any]) -> int | None:
    """How many numbers a decoding node gives, at most; None for any other node."""
    from onnx import numpy_helper

    if node.op_type in _SAME:
        return given[0]
    if node.op_type in _ELEMENTWISE:
        return max(given) if len(set(given)) == 1 or min(given) <= 1 else math.prod(given)
    if node.op_type == "Gather":  # a table of rows
        dims = constants[node.input[0]].dims if node.input[0] in constants else []
        rows = not any(a.name == "axis" and a.i for a in node.attribute) and len(dims) > 0 and dims[0] > 0
        return given[1] * (given[0] // dims[0]) if rows else None
    shape = constants.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
    if shape is None or len(shape.dims) != 1 or shape.dims[0] > 8:
        return None
    return max(0, math.prod(int(n) for n in numpy_helper.to_array(shape)))


def _computed(model: Any, nodes: list[Any], wanted: list[str]) -> dict[str, Array]:
    """What nodes of constants give, computed by ONNX Runtime as it would at load."""
    import onnxruntime
    from onnx import ModelProto, ValueInfoProto

    if not wanted:
        return {}
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(wanted, session.run(wanted, {}), strict=True))
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        line = next(iter(str(error).splitlines()), "")
        raise FileError("read ONNX: constants that cannot be decoded", got=line[:200]) from error


def _names(node: Any) -> set[str]:
    """Every name that a node or the graphs inside it read."""
    found = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            found |= {v.name for v in inner.output}
            for each in inner.node:
                found |= _names(each)
    return found
