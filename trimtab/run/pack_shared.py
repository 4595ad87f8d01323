"""Pack shared: floating-point constants of few distinct values, stored as indices and a codebook.

The values are single weights, or short rows of them (product quantisation). A look-up gives them back, which runtimes
compute once as they load the file; `store_bits` then stores the indices in as few bits as they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.graph.bits import STORED, bits_needed
from trimtab.graph.shared import LARGEST, Codebook, codebook_of
from trimtab.run.bits import cost_of, integers
from trimtab.run.narrow import narrowest

if TYPE_CHECKING:
    from trimtab.run.work import Work

Array = np.ndarray[Any, Any]

_LEAST = 64
"""Elements under which a constant stays as it is."""
_NODES = 100
"""Bytes in the file of the nodes that look values up, about."""


def store_shared(work: Work) -> None:
    """Store fp32 constants as indices and a codebook where the file gets smaller by it, in place."""
    from onnx import TensorProto, numpy_helper

    kept = {*work.outputs, *work.pinned}
    for name in list(work.constants):
        tensor = work.constants[name]
        if tensor.data_type != TensorProto.FLOAT or name in kept:
            continue
        value = work.array(name)
        if value is None or value.size < _LEAST:
            continue
        found, turned = codebook_of(value), False
        if found is None and value.ndim == 2:
            found, turned = codebook_of(np.ascontiguousarray(value.T)), True
        if found is None or found.entries > LARGEST:
            continue
        narrow = narrowest(value)
        if cost_of_codebook(work, found) >= (value.nbytes if narrow is None else len(narrow[1])):
            continue
        whole = f"{name}/shared"
        work.replace({name: whole})
        work.constants[name] = numpy_helper.from_array(_levels(found), name)
        work.constants[f"{name}/codebook"] = numpy_helper.from_array(_table(found))
        work.nodes[:0] = _looked_up(work, name, whole, found, turned)


def _looked_up(work: Work, name: str, whole: str, found: Codebook, turned: bool) -> list[Any]:
    """Nodes that make the values of indices and codebook."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", [name], [f"{whole}/at"], to=TensorProto.INT32),
        helper.make_node("Gather", [f"{name}/codebook", f"{whole}/at"], [f"{whole}/rows"]),
    ]
    if found.block > 1:
        shape = integers(work, list(found.shape))
        nodes.append(helper.make_node("Reshape", [f"{whole}/rows", shape], [f"{whole}/flat"]))
    if turned:
        nodes.append(helper.make_node("Transpose", [nodes[-1].output[0]], [f"{whole}/turned"], perm=[1, 0]))
    nodes[-1].output[0] = whole
    return nodes


def _levels(found: Codebook) -> Array:
    """Indices as int8 around zero; a look-up counts negative ones from the codebook's end.

    Two entries are -1 and +1, which one bit holds.
    """
    shape = found.shape if found.block == 1 else found.indices.shape
    indices = found.indices.reshape(shape).astype(np.int16)
    levels = indices * 2 - 1 if found.entries == 2 else indices - found.entries // 2
    return np.asarray(levels, np.int8)


def _table(found: Codebook) -> Array:
    """The codebook in the order that `_levels` looks it up."""
    rows = found.values if found.block > 1 else found.values.reshape(-1)
    if found.entries == 2:
        return np.ascontiguousarray(rows[[0, 1, 0]])
    return np.roll(rows, -(found.entries // 2), axis=0)


def cost_of_codebook(work: Work, found: Codebook) -> float:
    """Bytes in the file, about."""
    levels = _levels(found)
    stored = [cost_of(work, levels, bits) for bits in range(bits_needed(levels), STORED)]
    return min([levels.nbytes, *stored]) + found.values.nbytes + _NODES
