"""Shared: a tensor of few distinct values, or of few distinct short rows, as indices into a codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LARGEST = 256
"""Entries of a codebook at most: an index is one byte."""
BLOCKS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 18, 25, 32)
"""Lengths of the rows that are looked for."""
_SAMPLE = 4096
"""Rows that are looked at first."""


@dataclass(frozen=True)
class Codebook:
    """A tensor's rows, each one entry of a codebook.

    Args:
        values: the entries, [entries, block], each once.
        indices: of each row in the order of memory, uint8 [n / block].
        shape: of the tensor.
    """

    values: Array
    indices: Array
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """How many entries it has."""
        return len(self.values)

    @property
    def block(self) -> int:
        """The length of an entry."""
        return int(self.values.shape[1])

    def tensor(self) -> Array:
        """What it stands for."""
        return self.values[self.indices].reshape(self.shape)

    def bytes(self) -> int:
        """Of its entries and of indices in as few bits as they need."""
        bits = max(1, (self.entries - 1).bit_length())
        return int(self.values.nbytes) + -(-len(self.indices) * bits // 8)


def codebook_of(value: Array) -> Codebook | None:
    """The smallest codebook form of a tensor; None where none has at most `LARGEST` entries and half of its bytes.

    Args:
        value: fp32; compared bit by bit, so that what comes back is the very same.
    """
    bits = np.ascontiguousarray(value).reshape(-1).view(np.uint32)
    row = math.prod(value.shape[1:]) if value.ndim > 1 else 1
    found = [_of_blocks(bits, block, value.shape) for block in BLOCKS if row % block == 0]
    best = min((each for each in found if each is not None), key=Codebook.bytes, default=None)
    return best if best is not None and 2 * best.bytes() <= value.nbytes else None


def _of_blocks(bits: Array, block: int, shape: tuple[int, ...]) -> Codebook | None:
    rows = bits.reshape(-1, block)
    for some in (rows[:_SAMPLE], rows):
        # rows as single items of bytes, which sort faster than along an axis
        items = np.ascontiguousarray(some).view(f"V{4 * block}").reshape(-1) if block > 1 else some.reshape(-1)
        distinct, first, indices = np.unique(items, return_index=True, return_inverse=True)
        if len(distinct) > LARGEST:
            return None
    values = rows[first].view(np.float32)
    order = np.argsort(values[:, 0], kind="stable")
    rank = np.empty(len(order), np.uint8)
    rank[order] = np.arange(len(order))
    return Codebook(np.ascontiguousarray(values[order]), rank[indices.reshape(-1)], tuple(shape))
