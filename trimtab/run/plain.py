"""Plain: a model whose packed levels are int8 constants again, as a runtime has them once it has loaded the file."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROWS, _WIDEST = 16, 4
"""A table gives at most four levels for a number of four bits: nothing here grows with what a file says."""


def plain(model: Any) -> Any:
    """A copy with the constants that `store_bits` packed as int8 under their own names; without any, the model itself.

    Args:
        model: an onnx.ModelProto, its constants loaded; it may come from a stranger.

    Raises:
        ValueError: a packed constant is damaged.
    """
    from onnx import ModelProto, TensorProto, numpy_helper

    packed = {t.name for t in model.graph.initializer if t.data_type in (TensorProto.INT4, TensorProto.UINT4)}
    if not packed:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    reader = _Reader({t.name: t for t in graph.initializer}, {n: node for node in graph.node for n in node.output})
    found: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type not in ("DequantizeLinear", "Cast") or node.input[0] not in reader.producers:
            continue
        if any(a.name == "to" and a.i != TensorProto.FLOAT for a in node.attribute):
            continue  # a step of decoding, not the end of it
        leaf, value = reader.read(node.input[0])
        if leaf in packed and value is not None and value.dtype == np.int8:
            found[leaf], node.input[0] = value, leaf
    for tensor in graph.initializer:
        if tensor.name in found:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found[tensor.name]), tensor.name))
    _drop_unread(graph)
    return copy


class _Reader:
    """Computes what the decoding nodes of a graph give."""

    def __init__(self, constants: dict[str, Any], producers: dict[str, Any]) -> None:
        self.constants, self.producers = constants, producers

    def read(self, name: str, depth: int = 0) -> tuple[str, Array | None]:
        """The first packed constant behind a value, and the value; None where it is not the decoding of one."""
        from onnx import helper, numpy_helper

        if name in self.constants:
            value = numpy_helper.to_array(self.constants[name])
            return name, value.astype(np.int8) if value.dtype.name in ("int4", "uint4") else value
        node = self.producers.get(name)
        if node is None or depth > 8 or node.op_type not in ("Cast", "Gather", "Reshape", "Slice", "Add"):
            return "", None
        leaf, value = self.read(node.input[1 if node.op_type == "Gather" else 0], depth + 1)
        if value is None:
            return leaf, None
        if node.op_type == "Cast":
            return leaf, value.astype(helper.tensor_dtype_to_np_dtype(node.attribute[0].i))
        others = [self.read(n, depth + 1)[1] for n in node.input if n != node.input[1 if "G" in node.op_type else 0]]
        given = [other for other in others if other is not None]
        if len(given) != len(node.input) - 1:
            return leaf, None
        return leaf, _step(node.op_type, value, given)


def _step(kind: str, value: Array, given: list[Array]) -> Array | None:
    if kind == "Gather":
        table = given[0]
        fits = table.ndim == 2 and len(table) == _ROWS and table.shape[1] <= _WIDEST
        return table[value] if fits else None
    if kind == "Reshape":
        return value.reshape([int(n) for n in given[0]])
    if kind == "Add":
        return value + given[0] if value.shape == given[0].shape else None
    return value[int(given[0][0]) : int(given[1][0])]


def _drop_unread(graph: Any) -> None:
    alive = {v.name for v in graph.output}
    left = []
    for node in reversed(graph.node):
        if alive & set(node.output):
            left.append(node)
            alive.update(node.input)
            alive.update(n for a in node.attribute for inner in (a.g, *a.graphs) for n in _mentioned(inner))
    kept = [t for t in graph.initializer if t.name in alive]
    nodes = list(reversed(left))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _mentioned(graph: Any) -> set[str]:
    """Every name that an inner graph mentions."""
    found = {v.name for v in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _mentioned(inner)
    return found
