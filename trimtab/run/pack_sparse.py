"""Pack sparse: constants with many zeros, stored as a mask of one bit a value and the values that are not zero.

Runtimes put them back as they load the file, by operators that ONNX Runtime and OpenVINO both compute once there: the
places of a mask's ones are those of its largest values (TopK, which gives equal ones in order), and ScatterElements
puts the values there. (CumSum would be the shorter way, but OpenVINO keeps it for every run; ONNX Runtime keeps NonZero
and Compress.) What runs afterwards is what runs for the plain constant: smaller, not faster.

A mask of mostly zeros is stored in the same way: of four bits at a time, one bit says whether any of them is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.graph.bits import STORED, bits_needed, stream
from trimtab.graph.packed_sparse import SPARSE
from trimtab.graph.shared import LARGEST, codebook_of
from trimtab.run.bits import cost_of, integers
from trimtab.run.narrow import narrowest
from trimtab.run.pack_shared import cost_of_codebook

if TYPE_CHECKING:
    from trimtab.run.work import Work

Array = np.ndarray[Any, Any]

_LEAST = 256
"""Elements under which a constant stays as it is."""
_NIBBLE = 4
_NODES, _MORE = 330, 290
"""Bytes in the file of the nodes and small constants of a mask, and of one that is stored as sparse itself, about."""
_TABLE = "table/mask"
"""Sixteen rows: the four bits of each 4-bit number."""


def store_sparse(work: Work) -> bool:
    """Store constants without their zeros where the file gets smaller by it, in place; whether any was.

    By content: fp32 of any use, and int8 levels that are dequantised. What is left are values in one row, which
    `store_shared`, `store_bits` and `store_narrow` make smaller as they do any others.
    """
    if any(node.op_type == "GroupNormalization" for node in work.nodes):
        return False  # it means something else in the operator set that has 4-bit integers
    found = [(name, value) for name, value in _candidates(work) if _pays(work, value)]
    for name, value in found:
        work.nodes[:0] = _decoded(work, name, value)
    return bool(found)


def masked(value: Array) -> bool:
    """Whether a constant of such values, fp32 or int8 levels, gets smaller without its zeros."""
    from trimtab.run.work import Work

    return _looked_at(value) and _pays(Work([], {}, (), ()), value)


def _looked_at(value: Array) -> bool:
    return value.size >= _LEAST and 0 < int(np.count_nonzero(value)) <= (1 - SPARSE) * value.size


def _candidates(work: Work) -> Iterator[tuple[str, Array]]:
    from onnx import TensorProto

    kept = {*work.outputs, *work.pinned}
    levels = {node.input[0] for node in work.nodes if node.op_type == "DequantizeLinear" and not _blocks(node)}
    others = {
        name
        for node in work.nodes
        for i, name in enumerate(node.input)
        if i > 0 or node.op_type != "DequantizeLinear" or _blocks(node)
    }
    for name in list(work.constants):
        kind = work.constants[name].data_type
        floats, integer = kind == TensorProto.FLOAT, kind == TensorProto.INT8 and name in levels - others
        value = work.array(name) if name not in kept and (floats or integer) else None
        if value is not None and _looked_at(value):
            yield name, value


def _blocks(node: Any) -> bool:
    return any(a.name == "block_size" and a.i for a in node.attribute)


def _ones(value: Array) -> Array:
    """Where a value is anything but +0, flat."""
    flat = np.ascontiguousarray(value).reshape(-1)
    return np.asarray(flat.view(np.uint32 if flat.itemsize == 4 else np.uint8) != 0)


def _pays(work: Work, value: Array) -> bool:
    ones = _ones(value)
    values = np.ascontiguousarray(value).reshape(-1)[ones]
    return _mask_cost(_nibbles(ones)) + _NODES + _stored(work, values) < _stored(work, value)


def _stored(work: Work, value: Array) -> float:
    """Bytes that the other passes store a constant in, about."""
    if value.dtype == np.int8:
        return min([value.nbytes, *(cost_of(work, value, bits) for bits in range(bits_needed(value), STORED))])
    narrow, found = narrowest(value), codebook_of(value)
    shared = cost_of_codebook(work, found) if found is not None and found.entries <= LARGEST else value.nbytes
    return min(shared, value.nbytes if narrow is None else len(narrow[1]))


def _nibbles(ones: Array) -> Array:
    """Four truth values in each number, the first in the lowest bit: uint8 [ceil(n / 4)]."""
    padded = np.pad(ones, (0, -len(ones) % _NIBBLE)).reshape(-1, _NIBBLE)
    return np.asarray((padded << np.arange(_NIBBLE)).sum(1), np.uint8)


def _mask_cost(nibbles: Array) -> float:
    return min(len(nibbles) / 2, len(nibbles) / 8 + np.count_nonzero(nibbles) / 2 + _MORE)


def _decoded(work: Work, name: str, value: Array) -> list[Any]:
    """Nodes that make a constant of its values and its mask, which are put in its place."""
    from onnx import TensorProto, helper, numpy_helper

    whole, ones = f"{name}/sparse", _ones(value)
    work.replace({name: whole})
    work.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(-1)[ones])
    nodes, at = _places(work, f"{name}/mask", _nibbles(ones), int(ones.sum()))
    integer, given = value.dtype == np.int8, name
    if integer:  # OpenVINO scatters no int8 as it loads
        nodes.append(helper.make_node("Cast", [name], [f"{whole}/wide"], to=TensorProto.INT32))
        given = f"{whole}/wide"
    kind = TensorProto.INT32 if integer else TensorProto.FLOAT
    nodes += _scattered(work, f"{whole}/flat", given, at, value.size, kind)
    shape, made = integers(work, list(value.shape)), f"{whole}/shaped" if integer else whole
    nodes.append(helper.make_node("Reshape", [f"{whole}/flat", shape], [made]))
    if integer:
        nodes.append(helper.make_node("Cast", [made], [whole], to=TensorProto.INT8))
    return nodes


def _places(work: Work, name: str, nibbles: Array, count: int) -> tuple[list[Any], str]:
    """Nodes that give the places of a mask's `count` ones, in order, and the name of what they give."""
    from onnx import TensorProto, helper

    sparse = len(nibbles) / 8 + np.count_nonzero(nibbles) / 2 + _MORE < len(nibbles) / 2
    if sparse:
        some = nibbles != 0
        nodes, at = _places_of(work, f"{name}/mask", _nibbles(some), int(some.sum()))
        work.constants[name] = _numbers(nibbles[some])
        nodes.append(helper.make_node("Cast", [name], [f"{name}/some"], to=TensorProto.INT32))
        nodes += _scattered(work, f"{name}/int", f"{name}/some", at, len(nibbles), TensorProto.INT32)
        return _ones_of(work, name, count, nodes)
    return _places_of(work, name, nibbles, count)


def _places_of(work: Work, name: str, nibbles: Array, count: int) -> tuple[list[Any], str]:
    """The same of a mask that is stored as it is."""
    from onnx import TensorProto, helper

    work.constants[name] = _numbers(nibbles)
    return _ones_of(work, name, count, [helper.make_node("Cast", [name], [f"{name}/int"], to=TensorProto.INT32)])


def _ones_of(work: Work, name: str, count: int, nodes: list[Any]) -> tuple[list[Any], str]:
    from onnx import helper, numpy_helper

    if _TABLE not in work.constants:
        bits = np.arange(1 << _NIBBLE)[:, None] >> np.arange(_NIBBLE) & 1
        work.constants[_TABLE] = numpy_helper.from_array(bits.astype(np.int32))
    nodes += [
        helper.make_node("Gather", [_TABLE, f"{name}/int"], [f"{name}/rows"]),
        helper.make_node("Reshape", [f"{name}/rows", integers(work, [-1])], [f"{name}/bits"]),
        # of equal values the one with the lower index comes first
        helper.make_node("TopK", [f"{name}/bits", integers(work, [count])], [f"{name}/ones", f"{name}/at"], axis=0),
    ]
    return nodes, f"{name}/at"


def _scattered(work: Work, made: str, values: str, at: str, size: int, kind: int) -> list[Any]:
    """Nodes that put values at places among `size` zeros."""
    from onnx import helper

    zeros = helper.make_tensor("", kind, [1], [0])
    return [
        helper.make_node("ConstantOfShape", [integers(work, [size])], [f"{made}/zeros"], value=zeros),
        helper.make_node("ScatterElements", [f"{made}/zeros", at, values], [made], axis=0),
    ]


def _numbers(nibbles: Array) -> Any:
    from onnx import TensorProto

    data = stream(nibbles, _NIBBLE).tobytes()
    return TensorProto(data_type=TensorProto.UINT4, dims=[len(nibbles)], raw_data=data)
