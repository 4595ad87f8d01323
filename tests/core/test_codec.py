"""Entropy coding: words and lengths worked out by hand, bounds by entropy, and bytes from strangers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.hostile import attempted
from trimtab.core import codec, huffman
from trimtab.core.cursor import Cursor, number, part
from trimtab.core.errors import FileError, InputError
from trimtab.core.positions import _parts, decode_positions, encode_positions, gaps_of, places_of

METHODS = [pytest.param(m, id=str(m)) for m in codec.methods()]
PARTS = st.lists(arrays.arrays(np.uint16, st.integers(0, 200), elements=st.integers(0, 40)), min_size=1, max_size=4)


def drawn(shares: list[float], count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), size=count, p=shares).astype(np.uint16)


def test_huffmans_lengths_are_those_worked_out_by_hand() -> None:
    # a 5, b 2, c 1, d 1: c + d = 2, b + cd = 4, a + bcd = 9
    assert huffman.code_lengths(np.array([5, 2, 1, 1])).tolist() == [1, 2, 3, 3]
    assert huffman.code_words(np.array([1, 2, 3, 3])).tolist() == [0b0, 0b10, 0b110, 0b111]
    # the textbook's a to f: 45, 13, 12, 16, 9, 5 thousand
    assert huffman.code_lengths(np.array([45, 13, 12, 16, 9, 5])).tolist() == [1, 3, 3, 3, 4, 4]
    assert huffman.code_lengths(np.array([0, 7, 0])).tolist() == [0, 0, 0]
    assert huffman.code_lengths(np.array([3, 0, 1])).tolist() == [1, 0, 1]


def test_huffman_is_written_as_the_words_say() -> None:
    # a a b c -> 0 0 10 110
    bits = huffman.written(np.array([0, 0, 1, 2]), np.array([1, 2, 3, 3]))
    assert bits.tolist() == [0, 0, 1, 0, 1, 1, 0]


def test_words_are_at_most_fifteen_bits_however_rare_a_symbol_is() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci))
    assert lengths.max() <= huffman.LONGEST
    assert sum(2.0 ** -int(n) for n in lengths) == 1.0


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.15, 0.05], [0.97, 0.02, 0.01], [1 / 7] * 7])
def test_streams_are_as_short_as_their_entropy_allows(shares: list[float]) -> None:
    symbols = drawn(shares, 50_000)
    entropy = codec.entropy(np.bincount(symbols)) * len(symbols) / 8
    coded = len(codec.encode([symbols], [codec.HUFFMAN]))
    lengths = huffman.code_lengths(np.bincount(symbols))
    assert entropy <= coded <= entropy + len(symbols) / 8 + 8  # Huffman: less than a bit above it for each symbol
    assert abs(coded - float((np.bincount(symbols) * lengths).sum()) / 8) < 10
    pytest.importorskip("constriction")
    rans = len(codec.encode([symbols], [codec.RANS]))
    assert entropy <= rans <= entropy * 1.002 + 16
    assert abs(codec.cost([symbols]) - min(rans, coded)) < 0.01 * rans + 4


def test_entropy_of_two_equal_symbols_is_one_bit() -> None:
    assert codec.entropy(np.array([8, 8])) == 1.0
    assert codec.entropy(np.array([4])) == 0.0
    assert codec.entropy(np.array([2, 1, 1])) == 1.5


def test_frequencies_sum_to_a_power_of_two_and_leave_no_symbol_out() -> None:
    found = codec.frequencies(np.array([10**9, 1, 0, 1]))
    assert found.tolist() == [16384 - 2, 1, 0, 1]
    many = codec.frequencies(np.r_[np.ones(5000, np.int64), 10**6])
    assert many.sum() == 16384
    assert many.min() == 1


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(PARTS)
def test_what_is_coded_is_decoded(method: int, parts: list[np.ndarray]) -> None:
    data = codec.encode(parts, [method])
    found = codec.decode(data, [len(p) for p in parts])
    assert all(np.array_equal(a, b) for a, b in zip(found, parts, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_long_streams_pass_the_windows(method: int) -> None:
    symbols = drawn([0.4, 0.3, 0.2, 0.1], 400_000)
    assert np.array_equal(codec.decode(codec.encode([symbols], [method]), [len(symbols)])[0], symbols)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="out of range"):
        codec.encode([np.array([1 << 16])])
    with pytest.raises(InputError, match="out of range"):
        codec.encode([np.array([-1])])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_streams_give_an_error_or_as_many_numbers_as_were_asked_for(method: int, data: st.DataObject) -> None:
    symbols = drawn([0.6, 0.2, 0.1, 0.1], 300)
    coded = bytearray(codec.encode([symbols[:100], symbols[100:]], [method]))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(coded[: data.draw(st.integers(0, len(coded)))])
    found = attempted(lambda: codec.decode(cut, [100, 200]))
    assert found is None or [len(f) for f in found] == [100, 200]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 500))
def test_bytes_of_strangers_give_one_kind_of_error(data: bytes, count: int) -> None:
    found = attempted(lambda: codec.decode(data, [count]))
    assert found is None or len(found[0]) == count


def test_a_stream_that_claims_more_than_it_should_is_refused() -> None:
    coded = codec.encode([np.zeros(10, np.uint16)])
    claim = coded[:1] + number(1 << 40) + coded[2:]
    with pytest.raises(FileError, match="a claim of 1099511627776 numbers, expected 10"):
        codec.decode(claim, [10])
    with pytest.raises(FileError, match="no prefix code"):
        codec.decode(bytes([codec.HUFFMAN, 4, 2, 0x22]) + b"\0", [4])  # two words of two bits
    with pytest.raises(FileError, match=r"bits that mean no number|too many"):
        codec.decode(codec.encode([drawn([0.5, 0.5], 100)], [codec.methods()[-1]]) + b"\1\2\3\4\5\6\7\x08\x09", [100])


def test_numbers_and_parts_are_read_as_they_were_written() -> None:
    assert number(0) == b"\0"
    assert number(300) == b"\xac\x02"
    cursor = Cursor(number(300) + part(b"abc") + number(5), "here")
    assert cursor.number(300) == 300
    assert bytes(cursor.part()) == b"abc"
    with pytest.raises(FileError, match="here: byte 7: got a claim of 5, expected at most 4"):
        cursor.number(4)
    with pytest.raises(FileError, match="without an end"):
        Cursor(b"\xff" * 12, "here").number(9)
    with pytest.raises(FileError, match="got a claim of 5"):
        Cursor(b"\x05ab", "here").part()
    with pytest.raises(FileError, match="cut short"):
        Cursor(b"ab", "here").take(3)


def test_gaps_skip_where_a_number_of_so_many_bits_is_too_small() -> None:
    # Han et al. 2016, figure 2: values at 1, 4 and 15 with gaps of three bits
    assert gaps_of(np.array([1, 4, 15]), 3).tolist() == [1, 2, 7, 3]
    assert places_of(np.array([1, 2, 7, 3]), 3).tolist() == [1, 4, 15]
    assert gaps_of(np.array([], np.int64), 3).tolist() == []


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_positions_come_back(mask: np.ndarray) -> None:
    assert np.array_equal(decode_positions(encode_positions(mask), *mask.shape), mask)


@pytest.mark.parametrize("density", [0.002, 0.05, 0.5])
def test_positions_take_no_more_than_their_entropy(density: float) -> None:
    mask = np.random.default_rng(0).random((300, 400)) < density
    bound = codec.entropy(np.bincount(mask.reshape(-1))) * mask.size / 8
    coded = len(encode_positions(mask))
    assert coded <= (bound * 1.02 + 40 if len(codec.methods()) > 2 else bound * 1.1 + 40)


def test_rows_and_columns_of_unlike_density_take_less() -> None:
    rng = np.random.default_rng(0)
    chance = np.clip(rng.gamma(0.5, 0.1, (300, 1)) * rng.gamma(0.5, 2.0, (1, 700)), 0, 1)
    mask = rng.random((300, 700)) < chance
    alike = codec.entropy(np.bincount(mask.reshape(-1))) * mask.size / 8
    assert len(encode_positions(mask)) < 0.85 * alike
    assert np.array_equal(decode_positions(encode_positions(mask), *mask.shape), mask)


@pytest.mark.parametrize("shape", [(3, 400_000), (900_000, 2), (1100, 1000)])
def test_positions_of_pieces_come_back(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < rng.gamma(0.5, 0.3, (shape[0], 1)) * rng.gamma(0.5, 2.0, (1, shape[1]))
    for counts in ((4, 4), (8, 1), (1, 8)):
        classes = [rng.integers(0, n, size).astype(np.uint8) for n, size in zip(counts, shape, strict=True)]
        heads = [part(codec.encode([c])) if n > 1 else b"" for c, n in zip(classes, counts, strict=True)]
        data = bytes([0, *counts]) + b"".join(heads) + codec.encode(_parts(mask, *classes, counts))
        assert np.array_equal(decode_positions(data, *shape), mask)


@pytest.mark.parametrize("kind", ["bitmap", "classes", "gaps"])
def test_a_small_claim_of_many_places_takes_little_memory(kind: str) -> None:
    rows, columns = 2048, 4096
    places = rows * columns
    empty = bytes([codec.PLAIN]) + number(places) + b"\0"  # numbers of no bits
    classes = b"".join(part(codec.encode([np.arange(n, dtype=np.uint16) % 4])) for n in (rows, columns))
    data = {
        "bitmap": bytes([0, 1, 1]) + empty,
        "classes": bytes([0, 4, 4]) + classes + empty,
        "gaps": bytes([1, 3]) + number(places) + empty,
    }[kind]
    tracemalloc.start()
    mask = decode_positions(data, rows, columns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bool(mask.all()) == (kind == "gaps")
    assert peak < 5 * places + (20 << 20)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 30), st.integers(1, 30))
def test_positions_of_strangers_give_one_kind_of_error(data: bytes, rows: int, columns: int) -> None:
    found = attempted(lambda: decode_positions(data, rows, columns))
    assert found is None or found.shape == (rows, columns)
