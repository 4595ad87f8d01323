"""Bits: constant levels stored in an ONNX file in as few bits as they need, decoded once when a runtime loads it.

A packed constant is a tensor of 4-bit numbers. Four bits hold a level as it is; one number of four bits stands for
two or four levels of fewer bits, and a table of sixteen rows, shared by the file, gives them; five to seven bits are
the sum of two or three such parts. Casts, table look-ups and sums of constants: what every runtime computes when it
loads a file, so that it then runs the same integer kernels as on plain int8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.graph.bits import STORED, bits_needed, codes, levels_of, packed_bytes, stream

if TYPE_CHECKING:
    from trimtab.run.work import Work

Array = np.ndarray[Any, Any]

OPERATOR_SET = 21
"""Of ONNX: the first with 4-bit integers and with scales of blocks."""
_NIBBLE = 4
_NODE, _TENSOR = 30, 16
"""Bytes in the file of a node and around a constant, about: what is packed must save more."""
_PARTS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
"""Widths that make up a number of bits, the lowest first."""
_LEAST = 64
"""Elements under which a constant stays as it is."""


@dataclass(frozen=True)
class _Part:
    """`width` bits of each level, from bit `shift` up; `bits` of the whole."""

    width: int
    shift: int
    bits: int

    @property
    def alone(self) -> bool:
        """Whether it is all of them."""
        return self.width == self.bits

    def numbers(self, levels: Array) -> Array:
        """Of each level, uint8."""
        return codes(levels, self.bits) >> np.uint8(self.shift) & np.uint8((1 << self.width) - 1)

    @property
    def top(self) -> bool:
        """Whether the sign is in it."""
        return self.shift + self.width == self.bits

    def table(self) -> Array:
        """[16, 4 / width]: what each 4-bit number adds to the levels that it stands for."""
        each = np.arange(1 << _NIBBLE)[:, None] >> self.width * np.arange(_NIBBLE // self.width)
        numbers = each & (1 << self.width) - 1
        if self.alone:
            return levels_of(numbers.astype(np.uint8), self.width)
        sign = int(self.top) << (self.width - 1)
        return (((numbers ^ sign) - sign) << self.shift).astype(np.int32)  # no runtime adds int8 on a CPU

    def table_name(self) -> str:
        """One for all constants that it serves."""
        return f"table/{'alone' if self.alone else 'top' if self.top else 'low'}/{self.width}/{self.shift}"


def parts(bits: int) -> tuple[_Part, ...]:
    """How levels of so many bits are stored, the lowest bits first."""
    found, shift = [], 0
    for width in _PARTS[bits]:
        found.append(_Part(width, shift, bits))
        shift += width
    return tuple(found)


def store_bits(work: Work) -> bool:
    """Store int8 constants in fewer bits where the file gets smaller by it, in place; whether any was.

    By content: what matters is the levels that occur, not the setting they come from.
    """
    if any(node.op_type == "GroupNormalization" for node in work.nodes):
        return False  # it means something else in the operator set that has 4-bit integers
    blocks = [node for node in work.nodes if _block(node)]
    for node in blocks:
        _store_blocks(work, node)
    found = sorted(_candidates(work), key=lambda pair: -pair[1].size)
    stored = [_store(work, name, levels) for name, levels in found]
    return any(stored) or bool(blocks)


def _candidates(work: Work) -> Iterator[tuple[str, Array]]:
    """Constants of levels: int8, and dequantised or cast by whoever reads them."""
    from onnx import TensorProto

    kept: set[str] = {*work.outputs, *work.pinned}
    seen: set[str] = set()
    for node in work.nodes:
        name = node.input[0] if node.input else ""
        tensor = work.constants.get(name)
        if node.op_type not in ("DequantizeLinear", "Cast") or _block(node) or tensor is None or name in kept | seen:
            continue
        seen.add(name)
        levels = work.array(name) if tensor.data_type == TensorProto.INT8 else None
        if levels is not None and levels.size >= _LEAST:
            yield name, levels


def _store(work: Work, name: str, levels: Array) -> bool:
    least = bits_needed(levels)
    # one bit means -1 and +1; more bits hold these too
    costs = {bits: cost_of(work, levels, bits) for bits in range(least, STORED)}
    bits = min(costs, key=costs.__getitem__, default=STORED)
    if bits == STORED or costs[bits] >= levels.nbytes:
        return False
    value = f"{name}/levels"
    work.replace({name: value})
    work.nodes[:0] = _decoded(work, name, value, levels, bits)
    return True


def cost_of(work: Work, levels: Array, bits: int) -> int:
    """Bytes in the file, about."""
    total, every = 0, parts(bits)
    for part in every:
        total += packed_bytes(levels.size, part.width) + _NODE
        if part.width < _NIBBLE:
            total += 2 * _NODE + 8 * levels.ndim + _TENSOR  # Gather, Reshape
            total += 0 if part.table_name() in work.constants else part.table().nbytes + _TENSOR
            total += 2 * _NODE + _TENSOR + 8 if levels.size * part.width % _NIBBLE else 0  # Reshape, Slice
        if part.shift:
            total += _NODE + _TENSOR  # Add, and the name of one more constant
    return total if len(every) == 1 else total + _NODE


def _decoded(work: Work, name: str, value: str, levels: Array, bits: int) -> list[Any]:
    """Nodes that make the levels of packed constants, which are put in the place of the plain one."""
    from onnx import TensorProto, helper

    every = parts(bits)
    nodes: list[Any] = []
    if every[0].alone:
        _decode_part(work, nodes, name, value, levels, every[0])
        return nodes
    total = ""
    for part in every:
        made = f"{value}/{part.shift}"
        _decode_part(work, nodes, f"{name}/{part.shift}" if part.shift else name, made, levels, part)
        if total:
            nodes.append(helper.make_node("Add", [total, made], [f"{made}/sum"]))
            made = f"{made}/sum"
        total = made
    nodes.append(helper.make_node("Cast", [total], [value], to=TensorProto.INT8))
    return nodes


def _decode_part(work: Work, nodes: list[Any], name: str, value: str, levels: Array, part: _Part) -> None:
    """One constant of 4-bit numbers, and the nodes that make its share of the levels."""
    from onnx import TensorProto, helper

    data = stream(part.numbers(levels), part.width).tobytes()
    if part.width == _NIBBLE:
        kind, to = (TensorProto.INT4, TensorProto.INT8) if part.alone else (TensorProto.UINT4, TensorProto.INT32)
        work.constants[name] = TensorProto(data_type=kind, dims=levels.shape, raw_data=data)
        nodes.append(helper.make_node("Cast", [name], [value], to=to))
        return
    count = -(-levels.size * part.width // _NIBBLE)
    work.constants[name] = TensorProto(data_type=TensorProto.UINT4, dims=[count], raw_data=data)
    table = part.table_name()
    if table not in work.constants:
        work.constants[table] = _tensor(part.table())
    rows = f"{value}/rows"
    nodes.append(helper.make_node("Cast", [name], [f"{value}/at"], to=TensorProto.INT32))
    nodes.append(helper.make_node("Gather", [table, f"{value}/at"], [rows]))
    if levels.size * part.width % _NIBBLE:
        nodes.append(helper.make_node("Reshape", [rows, integers(work, [-1])], [f"{value}/flat"]))
        ends = [integers(work, [0]), integers(work, [levels.size])]
        nodes.append(helper.make_node("Slice", [f"{value}/flat", *ends], [f"{value}/cut"]))
        rows = f"{value}/cut"
    nodes.append(helper.make_node("Reshape", [rows, integers(work, list(levels.shape))], [value]))


def integers(work: Work, values: list[int]) -> str:
    """The name of a constant of int64 numbers, one for all that need the same."""
    name = "integers/" + ",".join(map(str, values))
    if name not in work.constants:
        work.constants[name] = _tensor(np.array(values, np.int64))
    return name


def _tensor(value: Array) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(value)


def _block(node: Any) -> int:
    """The block size of a dequantise node; 0 where its scales are of channels or of the whole."""
    found = (a.i for a in node.attribute if a.name == "block_size")
    return int(next(found, 0)) if node.op_type == "DequantizeLinear" else 0


def _store_blocks(work: Work, node: Any) -> None:
    """Levels with a scale for each block: 4-bit integers where they fit, so that runtimes find their own kernels."""
    from onnx import TensorProto

    name = node.input[0]
    if len(node.input) > 2 and not _any(work, node.input[2]):
        del node.input[2:]
    tensor = work.constants.get(name)
    if tensor is None or tensor.data_type != TensorProto.INT8 or len(node.input) > 2 or len(work.readers(name)) > 1:
        return
    levels = work.array(name)
    if levels is not None and bits_needed(levels) <= _NIBBLE and name not in {*work.outputs, *work.pinned}:
        data = stream(codes(levels, _NIBBLE), _NIBBLE).tobytes()
        work.constants[name] = TensorProto(data_type=TensorProto.INT4, dims=levels.shape, raw_data=data)


def _any(work: Work, name: str) -> bool:
    value = work.array(name) if name else np.zeros(1)
    return value is None or bool(value.any())
