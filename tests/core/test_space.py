"""Axes: sampling, neighbours, encoding."""

from __future__ import annotations

import random

import pytest

from trimtab.core.errors import InputError
from trimtab.core.space import Axis, encode, neighbours, sample

WIDTHS = Axis("Prune:conv.weight:0", (8, 16, 24, 32), ordered=True)
PRECISION = Axis("Quantise:conv", ("int8", "fp32"))


def test_neighbours_of_ordered_axes_are_beside() -> None:
    assert neighbours(WIDTHS, 16) == (8, 24)
    assert neighbours(WIDTHS, 32) == (24,)
    assert neighbours(PRECISION, "int8") == ("fp32",)


def test_encoding() -> None:
    assert encode(WIDTHS, 8) == (0.0,)
    assert encode(WIDTHS, 32) == (1.0,)
    assert encode(PRECISION, "fp32") == (0.0, 1.0)
    assert encode(Axis("one", (1,), ordered=True), 1) == (0.0,)


def test_samples_are_choices_and_repeat_with_the_seed() -> None:
    first, again = random.Random(3), random.Random(3)
    drawn = [sample(WIDTHS, first) for _ in range(50)]
    assert drawn == [sample(WIDTHS, again) for _ in range(50)]
    assert set(drawn) == set(WIDTHS.choices)


def test_a_choice_that_is_none() -> None:
    with pytest.raises(InputError, match="got 7, expected one of"):
        neighbours(WIDTHS, 7)
