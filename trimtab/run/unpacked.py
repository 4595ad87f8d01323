"""Unpacked: a model whose constants are as a runtime has them once it has loaded the file, with nothing to decode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from trimtab.core.errors import FileError

Array = np.ndarray[Any, Any]

_MOST = 1 << 31
"""Numbers that decoding may hold at once."""
_FILE = (1 << 31) - 1
"""Bytes of an ONNX file, at most."""
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
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(model)
    made = _unpack(copy, copy.graph, {}, 0)
    if made + model.ByteSize() > _FILE:
        got = f"about {made + model.ByteSize()} bytes once decoded"
        raise FileError("read ONNX: constants", got=got, expected=f"at most {_FILE}, as a file holds")
    return copy


def _unpack(model: Any, graph: Any, outer: dict[str, Any], made: int) -> int:
    """Decode the constants of a graph and of its branches in place.

    Args:
        model: that it is of.
        graph: an onnx.GraphProto.
        outer: the constants around it, by name.
        made: bytes decoded before.

    Returns:
        Bytes decoded after it.

    Raises:
        FileError: as `unpacked`.
    """
    from onnx import numpy_helper

    own = {t.name: t for t in graph.initializer}
    sizes = {name: math.prod(t.dims) for name, t in (outer | own).items()}
    decoding = _decoding(graph, outer | own, sizes)
    results = {name for node in decoding for name in node.output if name}
    left = [node for node in graph.node if not results & set(node.output)]
    wanted = results & _read(graph, left)
    peak = _peak(decoding, sizes, wanted)
    if made + peak > _MOST:
        raise FileError("read ONNX: constants", where=graph.name[:80], got=made + peak, expected=_MOST)
    for name, value in _computed(model, decoding, sorted(wanted), outer | own).items():
        own[name] = numpy_helper.from_array(value, name)
        made += value.nbytes
    if made > _FILE:
        raise FileError("read ONNX: constants", where=graph.name[:80], got=f"{made} bytes decoded", expected=_FILE)
    for inner in (g for node in left for g in graphs_of(node)):
        made = _unpack(model, inner, outer | own, made)
    read = _read(graph, left)  # branches read less now
    del graph.node[:], graph.initializer[:]
    graph.node.extend(left)
    graph.initializer.extend(t for name, t in own.items() if name in read)
    return made


def graphs_of(node: Any) -> Iterator[Any]:
    """The graphs inside a node, in the order of its bytes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def tensors_in(graph: Any) -> Iterator[Any]:
    """The constants of an onnx.GraphProto and of its branches, in the order of its bytes."""
    for node in graph.node:
        for inner in graphs_of(node):
            yield from tensors_in(inner)
    yield from graph.initializer


def _decoding(graph: Any, constants: dict[str, Any], sizes: dict[str, int]) -> list[Any]:
    """The nodes that decode constants, in order; how many numbers they give, at most, is added to `sizes`."""
    outputs = {v.name for v in graph.output}
    found = []
    for node in graph.node:
        given = [name for name in node.input if name]
        if node.domain or not given or any(name not in sizes for name in given) or outputs & set(node.output):
            continue
        size = _size(node, [sizes[name] for name in given], constants)
        if size is None:
            continue
        sizes |= {name: size for name in node.output if name}
        found.append(node)
    return found


def _peak(nodes: list[Any], sizes: dict[str, int], kept: set[str]) -> int:
    """How many numbers nodes hold at once, at most, where each goes after its last reader but for those kept."""
    last = {name: i for i, node in enumerate(nodes) for name in (*node.output, *node.input) if name}
    made = {name for node in nodes for name in node.output if name} - kept
    live = most = 0
    for i, node in enumerate(nodes):
        live += sum(sizes[name] for name in node.output if name)
        most = max(most, live)
        live -= sum(sizes[name] for name in {*node.output, *node.input} & made if last[name] == i)
    return most


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


def _computed(model: Any, nodes: list[Any], wanted: list[str], constants: dict[str, Any]) -> dict[str, Array]:
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
    part.graph.initializer.extend(t for name, t in constants.items() if name in read)
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(wanted, session.run(wanted, {}), strict=True))
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        line = next(iter(str(error).splitlines()), "")
        raise FileError("read ONNX: constants that cannot be decoded", got=line[:200]) from error


def _read(graph: Any, nodes: list[Any]) -> set[str]:
    """Every name that nodes of a graph read, and its outputs."""
    return {v.name for v in graph.output} | {name for node in nodes for name in _names(node)}


def _names(node: Any) -> set[str]:
    """Every name that a node or the graphs inside it read."""
    return set(node.input).union(*(_read(inner, list(inner.node)) for inner in graphs_of(node)))
