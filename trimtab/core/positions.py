"""Positions: where the values of a sparse matrix stand, in few bytes, without loss.

bitmap: one bit for each place, coded; rows and columns of like density share a model
gaps:   how many places lie between one value and the next, coded (relative indices, Han et al. 2016)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core import codec
from trimtab.core.cursor import Cursor, number, part

Array = np.ndarray[Any, Any]

_BITMAP, _GAPS = range(2)
_WIDTHS = (3, 4, 5, 6, 8)
"""Bits of a gap that are tried."""
_CLASSES = ((1, 1), (1, 4), (4, 1), (4, 4), (8, 1), (1, 8), (8, 8))
"""Numbers of classes of rows and of columns that are tried."""
_MOST_CLASSES = 16
_CHUNK = 1 << 18
"""Places that are worked on at a time."""
_ROUNDS = 12
"""Of Lloyd's algorithm, to find classes."""


def encode_positions(mask: Array) -> bytes:
    """A matrix of truth values in the form that takes the fewest bytes.

    Args:
        mask: bool [rows, columns].
    """
    gaps = {width: gaps_of(np.flatnonzero(mask), width) for width in _WIDTHS}
    width = min(_WIDTHS, key=lambda w: codec.cost([gaps[w]]))
    tried = {c: (_classes(mask, 1, c[0]), _classes(mask, 0, c[1])) for c in _CLASSES if _fits(c, mask)}
    costs = {c: _bitmap_cost(mask, *found) for c, found in tried.items()}
    best = min(costs, key=costs.__getitem__)
    if codec.cost([gaps[width]]) < costs[best]:
        return bytes([_GAPS, width]) + number(len(gaps[width])) + codec.encode([gaps[width]])
    rows, columns = tried[best]
    classes = [part(codec.encode([each])) if n > 1 else b"" for each, n in zip((rows, columns), best, strict=True)]
    return bytes([_BITMAP, *best]) + b"".join(classes) + codec.encode(_parts(mask, rows, columns, best))


def decode_positions(data: bytes | memoryview, rows: int, columns: int) -> Array:
    """The matrix that `encode_positions` took, bool [rows, columns].

    Args:
        data: which may come from a stranger.
        rows: that the caller expects; it has checked that rows x columns may be allocated.
        columns: likewise.

    Raises:
        FileError: it is no such matrix.
    """
    cursor = Cursor(data, "codec: not the positions of a matrix")
    kind = cursor.take(1)[0]
    if kind == _BITMAP:
        return _read_bitmap(cursor, rows, columns)
    if kind != _GAPS:
        raise cursor.wrong(f"kind {kind}", f"{_BITMAP} or {_GAPS}")
    width = cursor.take(1)[0]
    if not 1 <= width <= 16:
        raise cursor.wrong(f"gaps of {width} bits", "1 to 16")
    count = cursor.number(rows * columns)  # each moves on by at least one place
    gaps = codec.decode(cursor.take(cursor.left), [count])[0]
    mask, at = np.zeros(rows * columns, bool), 0
    for start in range(0, count, _CHUNK):
        ends, holds = _ends(gaps[start : start + _CHUNK], width)
        places = at + ends[holds] - 1
        if len(places) and places[-1] >= rows * columns:
            raise cursor.wrong(f"a value at {places[-1]}", f"{rows * columns} places")
        mask[places] = True
        at += int(ends[-1])
    return mask.reshape(rows, columns)


def gaps_of(places: Array, width: int) -> Array:
    """How many empty places lie before each value; the largest number of so many bits skips that many and holds none.

    Args:
        places: of the values, rising.
        width: bits of a gap.

    Source: Han et al. (2016), Deep Compression, section 2 and figure 2, where a skip holds a zero.
    """
    skip = (1 << width) - 1
    empty = np.diff(places, prepend=-1) - 1
    skips, rest = empty // skip, empty % skip
    ends = np.cumsum(skips + 1) - 1
    gaps = np.full(int(ends[-1]) + 1 if len(ends) else 0, skip, np.int64)
    gaps[ends] = rest
    return gaps


def places_of(gaps: Array, width: int) -> Array:
    """The places that `gaps_of` took."""
    ends, holds = _ends(gaps, width)
    places: Array = ends[holds] - 1
    return places


def _ends(gaps: Array, width: int) -> tuple[Array, Array]:
    """The place behind each gap and its value, and whether there is a value."""
    skip = (1 << width) - 1
    holds = gaps < skip
    return np.cumsum(np.where(holds, gaps.astype(np.int64) + 1, skip)), holds


def _fits(classes: tuple[int, int], mask: Array) -> bool:
    return all(n == 1 or size >= 4 * n for n, size in zip(classes, mask.shape, strict=True))


def _classes(mask: Array, axis: int, count: int) -> Array:
    """The class of each row or column by its density, uint8; empty ones are class 0.

    Lloyd's algorithm on the root of the density, which spreads equally likely errors equally.
    """
    density = np.sqrt(mask.mean(axis))
    if count == 1:
        return np.zeros(len(density), np.uint8)
    centres = np.concatenate([[0.0], np.linspace(density.min(), density.max(), count - 1)])
    found = np.zeros(len(density), np.intp)
    for _ in range(_ROUNDS):
        found = np.abs(density[:, None] - centres).argmin(1)
        for i in range(1, count):
            centres[i] = density[found == i].mean() if (found == i).any() else centres[i]
    return found.astype(np.uint8)


def _bitmap_cost(mask: Array, rows: Array, columns: Array) -> int:
    classes = sum(3 + codec.cost([c]) for c in (rows, columns) if c.any())
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    return int(3 + classes + codec.cost(_parts(mask, rows, columns, shape)))


def _parts(mask: Array, rows: Array, columns: Array, classes: tuple[int, int]) -> list[Array]:
    """The bits of each pair of classes, in the order of the matrix."""
    if classes == (1, 1):
        return [mask.reshape(-1)]
    pairs = (rows[:, None] * np.uint8(classes[1]) + columns).reshape(-1)
    flat = mask.reshape(-1)
    ordered = flat[np.argsort(pairs, kind="stable")]
    sizes = np.bincount(pairs, minlength=classes[0] * classes[1])
    return np.split(ordered, np.cumsum(sizes)[:-1])


def _read_bitmap(cursor: Cursor, rows: int, columns: int) -> Array:
    counts = [int(n) for n in cursor.take(2)]
    if not all(1 <= n <= _MOST_CLASSES for n in counts):
        raise cursor.wrong(f"{counts} classes", f"1 to {_MOST_CLASSES}")
    classes = []
    for size, count in zip((rows, columns), counts, strict=True):
        found = codec.decode(cursor.part(), [size])[0] if count > 1 else np.zeros(size, np.uint16)
        if len(found) and int(found.max()) >= count:
            raise cursor.wrong(f"class {found.max()}", f"below {count}")
        classes.append(found.astype(np.uint8))
    high, wide = ([int(np.count_nonzero(c == i)) for i in range(n)] for c, n in zip(classes, counts, strict=True))
    bits = codec.decode(cursor.take(cursor.left), [a * b for a in high for b in wide])
    highest = max(int(each.max(initial=0)) for each in bits)
    if highest > 1:
        raise cursor.wrong(f"a bit of {highest}", "0 or 1")
    if len(bits) == 1:
        return (bits[0] > 0).reshape(rows, columns)
    return _merged(bits, classes[0] * np.uint8(counts[1]), classes[1])


def _merged(bits: list[Array], rows: Array, columns: Array) -> Array:
    """The matrix whose bits of each pair of classes `_parts` gives, piece by piece: sorting takes much memory.

    Args:
        bits: of each pair.
        rows: the class of each row times the number of classes of columns, uint8.
        columns: the class of each column, uint8.
    """
    mask = np.empty((len(rows), len(columns)), bool)
    taken = np.zeros(len(bits), np.int64)
    high = max(1, _CHUNK // max(len(columns), 1))  # whole rows, or parts of one: in the order of the matrix
    for i in range(0, len(rows), high):
        for j in range(0, len(columns), _CHUNK):
            piece = mask[i : i + high, j : j + _CHUNK]
            pairs = (rows[i : i + high, None] + columns[j : j + _CHUNK]).reshape(-1)
            ends = taken + np.bincount(pairs, minlength=len(bits))
            flat = np.empty(piece.size, bool)
            flat[np.argsort(pairs, kind="stable")] = np.concatenate(
                [each[start:end] > 0 for each, start, end in zip(bits, taken, ends, strict=True)]
            )
            piece[:] = flat.reshape(piece.shape)
            taken = ends
    return mask
