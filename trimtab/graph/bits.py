"""Bits: integer levels stored in as few bits as their values need, without loss."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STORED = 8
"""Bits of a level as it stands in memory: int8."""


def bits_needed(levels: Array) -> int:
    """The fewest bits that hold every level: 1 for -1 and +1 alone, else b for -2^(b-1) to 2^(b-1) - 1.

    Args:
        levels: int8, any shape.
    """
    if levels.size == 0:
        return STORED
    low, high = int(levels.min()), int(levels.max())
    if low >= -1 and high <= 1 and bool(np.all(levels)):
        return 1
    return max(2, (~low if low < 0 else low).bit_length() + 1, (~high if high < 0 else high).bit_length() + 1)


def packed_bytes(count: int, bits: int) -> int:
    """ceil(count * bits / 8): what that many values take, in bytes."""
    return -(-count * bits // 8)


def codes(levels: Array, bits: int) -> Array:
    """Levels as numbers from 0 to 2^bits - 1, uint8: two's complement cut to its lowest bits; (q + 1) / 2 for one bit.

    Args:
        levels: int8, that fit into the bits.
        bits: 1 to 8.
    """
    flat = np.ascontiguousarray(levels, np.int8).reshape(-1).view(np.uint8)
    if bits == 1:
        flat = (flat == 1).astype(np.uint8)
    return flat & np.uint8((1 << bits) - 1)


def levels_of(numbers: Array, bits: int) -> Array:
    """The levels that `codes` made numbers of, int8."""
    if bits == 1:
        return numbers.astype(np.int8) * np.int8(2) - np.int8(1)
    sign = 1 << (bits - 1)
    return ((numbers.astype(np.int16) ^ sign) - sign).astype(np.int8)


def stream(numbers: Array, bits: int) -> Array:
    """Numbers of a few bits one behind the other, the first in the lowest bits of the first byte; zeros fill the last.

    Args:
        numbers: uint8 [n], each below 2^bits.
        bits: of each.

    Returns:
        uint8 [ceil(n * bits / 8)].
    """
    single = np.unpackbits(numbers.reshape(-1, 1), axis=1, count=bits, bitorder="little")  # [n, bits]
    return np.packbits(single, bitorder="little")


def numbers_in(data: Array, bits: int, count: int) -> Array:
    """The first numbers of a stream, uint8 [count]."""
    single = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(single, axis=1, bitorder="little").reshape(count)


def pack_levels(levels: Array, bits: int) -> Array:
    """Levels in `bits` bits each, in the order of their memory: uint8 [ceil(n * bits / 8)]."""
    return stream(codes(levels, bits), bits)


def unpack_levels(data: Array, bits: int, shape: tuple[int, ...]) -> Array:
    """The levels that `pack_levels` packed: int8 of that shape."""
    count = int(np.prod(shape, dtype=np.int64))
    return levels_of(numbers_in(data, bits, count), bits).reshape(shape)
