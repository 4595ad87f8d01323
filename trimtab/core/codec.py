"""Codec: streams of small whole numbers in nearly as few bits as their entropy allows, without loss.

A stream is coded by canonical Huffman codes, by rANS (asymmetric numeral systems, through the package `constriction`),
or in plain bits: whichever is smallest. Its parts may each have a model of their own: one table for each.

    stream = method, count, then plain: width, bits; Huffman: lengths of each part, bits; rANS: frequencies, words
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.core import huffman
from trimtab.core.cursor import Cursor, number
from trimtab.core.errors import InputError, RuntimeMissing

Array = np.ndarray[Any, Any]

PLAIN, HUFFMAN, RANS = range(3)
"""The methods, as they stand in a stream."""
SYMBOLS = 1 << 16
"""A stream's numbers are below this."""
_TOTAL = 1 << 14
"""Sum of the frequencies of a rANS model."""
_WORD = np.dtype("<u4")
_STATE = 6
"""Bytes that rANS takes beside the entropy, about."""


def methods() -> tuple[int, ...]:
    """The methods that can be used here: rANS needs the package `constriction`."""
    return (PLAIN, HUFFMAN, RANS) if importlib.util.find_spec("constriction") else (PLAIN, HUFFMAN)


def encode(parts: Sequence[Array], allowed: Sequence[int] | None = None) -> bytes:
    """Whole numbers as one stream, by the method that takes the fewest bytes.

    Args:
        parts: each whole numbers from 0 to 65535, [n]; each part has its own model.
        allowed: methods; None allows all that can be used here.

    Raises:
        InputError: a number is out of range.
        RuntimeMissing: rANS alone is allowed, and its package is not installed.
    """
    if any(p.size and (p.min() < 0 or p.max() >= SYMBOLS) for p in parts):
        raise InputError("codec: a number is out of range", expected=f"0 to {SYMBOLS - 1}")
    arrays = [p.reshape(-1).astype(np.uint16) for p in parts]
    counts = [np.bincount(a) for a in arrays]
    best = min(methods() if allowed is None else allowed, key=lambda m: _cost(counts, m))
    head = bytes([best]) + number(sum(len(a) for a in arrays))
    if best == PLAIN:
        return head + _plain(arrays)
    return head + (_huffman(arrays, counts) if best == HUFFMAN else _rans(arrays, counts))


def cost(parts: Sequence[Array]) -> int:
    """Bytes that `encode` would make of numbers, about (within some 1 %)."""
    counts = [np.bincount(p.reshape(-1).astype(np.int64)) for p in parts]
    return int(min(_cost(counts, method) for method in methods()))


def entropy(counts: Array) -> float:
    """Bits per symbol that no code of single symbols beats: -sum p log2 p (Shannon 1948)."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum())


def decode(data: bytes | memoryview, counts: Sequence[int]) -> list[Array]:
    """The parts that `encode` took, uint16 [n] each.

    Args:
        data: a whole stream, which may come from a stranger.
        counts: how many numbers each part has. The caller has checked them: nothing here grows beyond their sum.

    Raises:
        FileError: it is no such stream, or one of other counts.
        RuntimeMissing: it is coded by rANS, and the package is not installed.
    """
    cursor = Cursor(data, "codec: not a stream")
    method, total = cursor.take(1)[0], cursor.number(1 << 62)
    if total != sum(counts):
        raise cursor.wrong(f"a claim of {total} numbers", sum(counts))
    readers = {PLAIN: _read_plain, HUFFMAN: _read_huffman, RANS: _read_rans}
    if method not in readers:
        raise cursor.wrong(f"method {method}", f"one of {list(readers)}")
    return readers[method](cursor, counts)


def _cost(counts: Sequence[Array], method: int) -> float:
    total = sum(int(c.sum()) for c in counts)
    used = [c for c in counts if len(c)]
    if method == PLAIN:
        return 1 + total * max((len(c) - 1).bit_length() for c in used) / 8 if used else 1
    if method == HUFFMAN:
        lengths = [huffman.code_lengths(c) for c in used]
        return sum(2 + len(c) / 2 + float((c * n).sum()) / 8 for c, n in zip(used, lengths, strict=True))
    if any(np.count_nonzero(c) > _TOTAL // 2 for c in used):
        return float("inf")
    found = [frequencies(c) for c in used]
    heads = sum(len(number(len(f))) + sum(len(number(int(n))) for n in f[:-1]) for f in found)
    bits = sum(float((c[c > 0] * np.log2(_TOTAL / f[c > 0])).sum()) for c, f in zip(used, found, strict=True))
    return _STATE + heads + bits / 8


def _plain(arrays: Sequence[Array]) -> bytes:
    whole = np.concatenate([np.zeros(0, np.uint16), *arrays])
    width = int(whole.max()).bit_length() if len(whole) else 0
    single = whole[:, None] >> np.arange(width, dtype=np.uint16) & np.uint16(1)  # [n, width], the lowest bit first
    return bytes([width]) + np.packbits(single.astype(np.uint8), bitorder="little").tobytes()


def _read_plain(cursor: Cursor, counts: Sequence[int]) -> list[Array]:
    width, total = cursor.take(1)[0], sum(counts)
    if width > 16:
        raise cursor.wrong(f"{width} bits", "at most 16")
    data = np.frombuffer(cursor.take(-(-total * width // 8)), np.uint8)
    cursor.end()
    single = np.unpackbits(data, count=total * width, bitorder="little").reshape(total, width)
    whole = np.zeros(total, np.uint16)
    for i in range(width):
        whole |= single[:, i].astype(np.uint16) << np.uint16(i)
    return _split(whole, counts)


def _split(whole: Array, counts: Sequence[int]) -> list[Array]:
    return np.split(whole, np.cumsum(counts)[:-1]) if counts else []


def _huffman(arrays: Sequence[Array], counts: Sequence[Array]) -> bytes:
    """For each part its lengths, two in a byte, then the bits of all.

    A part of one symbol alone has lengths of zero: it is then the last.
    """
    head, bits = b"", [np.zeros(0, np.uint8)]
    for array, count in zip(arrays, counts, strict=True):
        if len(array):
            lengths = huffman.code_lengths(count)
            pairs = np.append(lengths, np.zeros(len(lengths) % 2, np.uint8)).reshape(-1, 2)
            head += number(len(lengths)) + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()
            bits.append(huffman.written(array, lengths))
    return head + np.packbits(np.concatenate(bits)).tobytes()


def _read_huffman(cursor: Cursor, counts: Sequence[int]) -> list[Array]:
    tables = []
    for count in counts:
        size = cursor.number(SYMBOLS) if count else 0
        if count and not size:
            raise cursor.wrong("no symbols", "some")
        pairs = np.frombuffer(cursor.take(-(-size // 2)), np.uint8)
        lengths = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:size]
        huffman.check_lengths(lengths, cursor)
        tables.append(lengths)
    bits = np.unpackbits(np.frombuffer(cursor.take(cursor.left), np.uint8))
    found, at = [], 0
    for count, lengths in zip(counts, tables, strict=True):
        if not lengths.any():
            found.append(np.full(count, max(len(lengths) - 1, 0), np.uint16))
            continue
        symbols, at = huffman.read(bits, lengths, count, at, cursor)
        found.append(symbols)
    if len(bits) - at >= 8:
        raise cursor.wrong(f"{(len(bits) - at) // 8} bytes too many", "its end")
    return found


def frequencies(counts: Array) -> Array:
    """Counts scaled to a sum of 16384, at least 1 where a symbol occurs at all: the exact model of a rANS part.

    Args:
        counts: how often each symbol occurs; at most 8192 of them do.
    """
    present = counts > 0
    scaled = np.where(present, np.maximum(1, np.rint(counts * (_TOTAL / counts.sum()))), 0).astype(np.int64)
    while scaled.sum() != _TOTAL:  # what rounding gave too much or too little, the most frequent carry
        missing = int(_TOTAL - scaled.sum())
        largest = int(scaled.argmax())
        scaled[largest] += max(missing, -(int(scaled[largest]) // 2))
    return scaled


def _rans(arrays: Sequence[Array], counts: Sequence[Array]) -> bytes:
    """For each part its frequencies but for the last, which is what is missing to the sum; then the words."""
    stream = _constriction()
    coder, heads = stream.stack.AnsCoder(), []
    for array, count in reversed(list(zip(arrays, counts, strict=True))):  # a stack: the first symbol comes last
        if not len(array):
            continue
        model = frequencies(count)
        heads.append(number(len(model)) + b"".join(number(int(f)) for f in model[:-1]))
        used = np.flatnonzero(model)
        if len(used) > 1:
            coder.encode_reverse(np.searchsorted(used, array).astype(np.int32), _model(stream, model[used]))
    words = np.asarray(coder.get_compressed(), np.uint32).astype(_WORD).tobytes()
    return b"".join(reversed(heads)) + words.rstrip(b"\0")


def _read_rans(cursor: Cursor, counts: Sequence[int]) -> list[Array]:
    models = [_read_frequencies(cursor) if count else np.zeros(0, np.int64) for count in counts]
    words = bytes(cursor.take(cursor.left)).rstrip(b"\0")
    stream = _constriction()
    coder = stream.stack.AnsCoder(np.frombuffer(words + bytes(-len(words) % 4), _WORD).astype(np.uint32))
    found = []
    for count, model in zip(counts, models, strict=True):
        used = np.flatnonzero(model).astype(np.uint16)
        if len(used) > 1:
            found.append(used[coder.decode(_model(stream, model[used]), count)])
        else:
            found.append(np.full(count, used[0] if count else 0, np.uint16))
    if not coder.is_empty():
        raise cursor.wrong("bits that mean no number", "its end")
    return found


def _read_frequencies(cursor: Cursor) -> Array:
    size = cursor.number(SYMBOLS)
    if not 1 <= size <= cursor.left + 1:
        raise cursor.wrong(f"{size} symbols", f"1 to {cursor.left + 1}")
    found = [cursor.number(_TOTAL) for _ in range(size - 1)]
    rest = _TOTAL - sum(found)
    if rest < 1:
        raise cursor.wrong("frequencies that are too high", f"a sum of {_TOTAL}")
    return np.array([*found, rest], np.int64)


def _model(stream: Any, used: Array) -> Any:
    """Frequencies over a power of two are exact as floats: the model is the same on every machine."""
    return stream.model.Categorical(used / _TOTAL, perfect=False)


def _constriction() -> Any:
    try:
        from constriction import stream
    except ImportError as error:
        raise RuntimeMissing(
            "codec: rANS needs the package constriction", got=error, do="Run: pip install 'trimtab[coding]'."
        ) from error
    return stream
