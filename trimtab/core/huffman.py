"""Huffman: canonical prefix codes of small whole numbers."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from trimtab.core.cursor import Cursor

Array = np.ndarray[Any, Any]

LONGEST = 15
"""Bits of a code word at most, so that its length takes four bits and a table of all is small."""
_WINDOW = 1 << 18
"""Bits that are looked at together."""
_CHUNK = 1 << 18
"""Symbols that are written together."""


def code_lengths(counts: Array) -> Array:
    """Bits of each symbol's code word, uint8; 0 for a symbol that does not occur (and for one that is alone).

    Huffman's algorithm: the two lightest trees become one, until one is left. Where a word would be longer than
    `LONGEST`, the counts are halved, rounded up, and it starts again.

    Args:
        counts: how often each symbol occurs.

    Source: Huffman (1952), A Method for the Construction of Minimum-Redundancy Codes, as Han et al. (2016), Deep
    Compression, section 4, use it.
    """
    lengths = np.zeros(len(counts), np.uint8)
    present = np.flatnonzero(counts)
    weights = counts[present].astype(np.int64)
    while len(present) > 1:
        depth = _depths(weights.tolist())
        if max(depth) <= LONGEST:
            lengths[present] = depth
            break
        weights = weights + 1 >> 1
    return lengths


def _depths(weights: list[int]) -> list[int]:
    """The depth of each leaf in Huffman's tree."""
    parent: list[int] = [0] * (2 * len(weights) - 1)
    heap = [(weight, i) for i, weight in enumerate(weights)]
    heapq.heapify(heap)
    made = len(weights)
    while len(heap) > 1:
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)
        parent[i] = parent[j] = made
        heapq.heappush(heap, (a + b, made))
        made += 1
    depth = [0] * made
    for node in range(made - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return depth[: len(weights)]


def code_words(lengths: Array) -> Array:
    """The canonical code words, uint16: shorter ones first, among equals in the order of the symbols."""
    words = np.zeros(len(lengths), np.uint16)
    word, before = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if length:
            word <<= length - before
            words[symbol], before = word, length
            word += 1
    return words


def written(symbols: Array, lengths: Array) -> Array:
    """The code words of symbols one behind the other, as single bits (uint8), the highest bit of each first."""
    words, places = code_words(lengths), np.arange(LONGEST - 1, -1, -1, dtype=np.uint16)
    found = [np.zeros(0, np.uint8)]
    for start in range(0, len(symbols), _CHUNK):
        some = symbols[start : start + _CHUNK]
        bits = (words[some][:, None] >> places & np.uint16(1)).astype(np.uint8)  # [n, LONGEST]
        found.append(bits[places < lengths[some][:, None]])
    return np.concatenate(found)


def check_lengths(lengths: Array, cursor: Cursor) -> None:
    """FileError unless the lengths are those of a code in which every row of bits means something.

    sum 2^-l = 1 (Kraft), or a single symbol of no bits.
    """
    used = lengths[lengths > 0].astype(np.int64)
    if len(used) and int((1 << LONGEST - used).sum()) != 1 << LONGEST:
        raise cursor.wrong("lengths of no prefix code", "those of a complete one")


def read(bits: Array, lengths: Array, count: int, start: int, cursor: Cursor) -> tuple[Array, int]:
    """Symbols from single bits, uint16 [count], and the place behind them.

    What each place of the bits would mean is looked up for all places together; following the words from one to the
    next is then all that is left.

    Args:
        bits: as `written` gives them; anything may stand there.
        lengths: of a complete code.
        count: symbols to read.
        start: the place of the first.
        cursor: says what is wrong.

    Raises:
        FileError: the bits end before the symbols do.
    """
    symbol_at, length_at = _table(lengths)
    found = np.empty(count, np.uint16)
    done, at = 0, start
    while done < count:
        if at >= len(bits):
            raise cursor.wrong(f"{done} symbols", f"{count}")
        some = bits[at : at + _WINDOW + LONGEST]
        ahead = _ahead(some)[:_WINDOW]
        steps = length_at[ahead].tolist()
        places: list[int] = []
        place, end = 0, len(steps)
        while place < end and len(places) < count - done:
            places.append(place)
            place += steps[place]
        found[done : done + len(places)] = symbol_at[ahead[places]]
        done += len(places)
        at += place
    if at > len(bits):
        raise cursor.wrong("a word that is cut short", f"{count} symbols")
    return found, at


def _table(lengths: Array) -> tuple[Array, Array]:
    """For every row of `LONGEST` bits the symbol that it begins with, and that one's length."""
    symbol_at = np.zeros(1 << LONGEST, np.uint16)
    length_at = np.zeros(1 << LONGEST, np.uint8)
    for symbol, word in enumerate(code_words(lengths)):
        length = int(lengths[symbol])
        if length:
            first = int(word) << LONGEST - length
            symbol_at[first : first + (1 << LONGEST - length)] = symbol
            length_at[first : first + (1 << LONGEST - length)] = length
    return symbol_at, length_at


def _ahead(bits: Array) -> Array:
    """At each place the next `LONGEST` bits as a number, zeros behind the end."""
    wide = np.concatenate([bits, np.zeros(LONGEST, np.uint8)]).astype(np.uint16)
    total = np.zeros(len(bits), np.uint16)
    for i in range(LONGEST):
        total |= wide[i : i + len(bits)] << np.uint16(LONGEST - 1 - i)
    return total
