"""Trim tensor: the bytes of one constant, coded by what is in them, without loss.

form, width of an item, row length
[positions of the items that are not zero]
few distinct items: codebook, indices    or    many: one stream for each byte of an item
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core import codec
from trimtab.core.cursor import Cursor, number, part
from trimtab.core.positions import decode_positions, encode_positions

Array = np.ndarray[Any, Any]

LEAST = 32
"""Bytes under which a constant stays as it is."""
_PLAIN = 255
_SPARSE, _FEW = 1, 2
"""Flags of a form."""
WIDTHS = (1, 2, 4, 8)
_MOST = 1 << 28
"""Items of a constant that is coded: decoding takes up to about 16 bytes of memory for each beside its own."""
_MOST_DISTINCT = 4096
"""Entries of a codebook."""
_ZEROS = 0.05
"""Share of zeros from which a sparse form is tried."""


def encode_tensor(data: bytes, width: int, columns: int) -> bytes:
    """The bytes of a constant in the form that takes the fewest bytes.

    Args:
        data: its bytes.
        width: bytes of an item: 1, 2, 4 or 8.
        columns: items in a row; rows and columns of like density are coded alike.
    """
    found = [bytes([_PLAIN]) + data]
    if len(data) % (width * columns) == 0 and 0 < len(data) <= _MOST * width:
        items = np.frombuffer(data, f"<u{width}")
        head = bytes([width]) + number(columns)
        values, form = _values(items)
        found.append(bytes([form]) + head + values)
        zeros = 1 - np.count_nonzero(items) / len(items)
        if zeros >= _ZEROS:
            positions = part(encode_positions(items.reshape(-1, columns) != 0))
            values, form = _values(items[items != 0])
            found.append(bytes([form | _SPARSE]) + head + positions + values)
    return min(found, key=len)


def decode_tensor(data: bytes | memoryview, length: int) -> bytes:
    """The bytes that `encode_tensor` took.

    Args:
        data: which may come from a stranger.
        length: of the bytes; the caller has checked that so many may be allocated.

    Raises:
        FileError: it is no such constant.
    """
    cursor = Cursor(data, "trim file: a damaged constant")
    form = cursor.take(1)[0]
    if form == _PLAIN:
        if cursor.left != length:
            raise cursor.wrong(f"{cursor.left} bytes", length)
        return bytes(cursor.take(length))
    if form > _SPARSE + _FEW:
        raise cursor.wrong(f"form {form}", f"at most {_SPARSE + _FEW}")
    width = cursor.take(1)[0]
    columns = cursor.number(length)
    if width not in WIDTHS or not columns or length % (width * columns):
        raise cursor.wrong(f"rows of {columns} items of {width} bytes", f"{length} bytes")
    if length > _MOST * width:
        raise cursor.wrong(f"a claim of {length // width} items", f"at most {_MOST}")
    items = np.zeros(length // width, f"<u{width}")
    if form & _SPARSE:
        mask = decode_positions(cursor.part(), len(items) // columns, columns).reshape(-1)
        items[mask] = _read_values(cursor, form, width, int(np.count_nonzero(mask)))
    else:
        items[:] = _read_values(cursor, form, width, len(items))
    return items.tobytes()


def _values(items: Array) -> tuple[bytes, int]:
    """Coded items, and the flag of their form."""
    distinct = _distinct(items)
    if distinct is None:
        return _planes(items), 0
    indices = np.searchsorted(distinct, items)
    return number(len(distinct)) + _planes(distinct) + codec.encode([indices]), _FEW


def _distinct(items: Array) -> Array | None:
    """The distinct items, rising; None where there are too many for a codebook to pay."""
    most = min(_MOST_DISTINCT, len(items) // 2)
    if len(np.unique(items[: 4 * _MOST_DISTINCT])) > most:
        return None
    found = np.unique(items)
    return found if 0 < len(found) <= most else None


def _planes(items: Array) -> bytes:
    """One stream for each byte of an item, the lowest first: those of exponents and signs repeat themselves."""
    planes = items.view(np.uint8).reshape(len(items), items.itemsize)
    return b"".join(part(codec.encode([np.ascontiguousarray(planes[:, i])])) for i in range(items.itemsize))


def _read_values(cursor: Cursor, form: int, width: int, count: int) -> Array:
    if not form & _FEW:
        items = _read_planes(cursor, width, count)
        cursor.end()
        return items
    size = cursor.number(min(_MOST_DISTINCT, count))
    distinct = _read_planes(cursor, width, size)
    indices = codec.decode(cursor.take(cursor.left), [count])[0]
    if len(indices) and int(indices.max()) >= size:
        raise cursor.wrong(f"index {indices.max()}", f"below {size}")
    return distinct[indices]


def _read_planes(cursor: Cursor, width: int, count: int) -> Array:
    planes = np.empty((count, width), np.uint8)
    for i in range(width):
        found = codec.decode(cursor.part(), [count])[0]
        if len(found) and int(found.max()) > 255:
            raise cursor.wrong(f"a byte of {found.max()}", "at most 255")
        planes[:, i] = found
    return planes.reshape(-1).view(f"<u{width}")
