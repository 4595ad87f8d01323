"""Bits: what is packed takes the bytes that arithmetic says, and comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.graph.bits import bits_needed, codes, numbers_in, pack_levels, packed_bytes, stream, unpack_levels

SHAPES = arrays.array_shapes(max_dims=4, max_side=9, min_side=1)


@pytest.mark.parametrize(
    ("levels", "bits"),
    [
        *(([-1, 1], 1), ([1, 1], 1), ([-1], 1), ([0], 2), ([-1, 0, 1], 2), ([-2, 1], 2), ([2], 3), ([-3, 3], 3)),
        *(([-4, 3], 3), ([-5], 4), ([7], 4), ([-8], 4), ([8], 5), ([15, -16], 5), ([31], 6), ([-33], 7), ([63], 7)),
        *(([64], 8), ([-65], 8), ([-128, 127], 8)),
    ],
)
def test_the_bits_that_levels_need(levels: list[int], bits: int) -> None:
    assert bits_needed(np.array(levels, np.int8)) == bits


def test_by_hand() -> None:
    assert pack_levels(np.array([1, -1, -1, 1, 1, 1, -1, -1, 1], np.int8), 1).tolist() == [0b00111001, 0b1]
    assert pack_levels(np.array([[1, -1], [0, -2]], np.int8), 2).tolist() == [0b10_00_11_01]
    assert pack_levels(np.array([3, -4, -1], np.int8), 3).tolist() == [0b11_100_011, 0b1]
    assert pack_levels(np.array([-7, 5, 1], np.int8), 4).tolist() == [0x59, 0x01]


@pytest.mark.parametrize("bits", range(1, 9))
@given(data=st.data())
def test_every_tensor_comes_back_from_the_bytes_of_the_arithmetic(bits: int, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    half = 1 << (bits - 1)
    values = st.sampled_from([-1, 1]) if bits == 1 else st.integers(-half, half - 1)
    levels = data.draw(arrays.arrays(np.int8, shape, elements=values))
    packed = pack_levels(levels, bits)
    assert packed.dtype == np.uint8
    assert packed.nbytes == packed_bytes(levels.size, bits) == int(np.ceil(levels.size * bits / 8))
    assert np.array_equal(unpack_levels(packed, bits, shape), levels)
    needed = bits_needed(levels)
    assert needed <= bits
    assert np.array_equal(unpack_levels(pack_levels(levels, needed), needed, shape), levels)


@given(data=st.data(), bits=st.integers(1, 8))
def test_streams_of_numbers_come_back(data: st.DataObject, bits: int) -> None:
    numbers = data.draw(arrays.arrays(np.uint8, st.integers(0, 50), elements=st.integers(0, (1 << bits) - 1)))
    assert np.array_equal(numbers_in(stream(numbers, bits), bits, len(numbers)), numbers)


def test_a_level_of_a_view_is_packed_in_the_order_of_the_shape() -> None:
    levels = np.arange(-6, 6, dtype=np.int8).reshape(3, 4).T
    assert np.array_equal(unpack_levels(pack_levels(levels, 4), 4, (4, 3)), levels)
    assert codes(levels, 4).tolist() == [v & 15 for row in levels.tolist() for v in row]
