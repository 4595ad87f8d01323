"""Fusable: the data is consistent, and the ranges are those of the types."""

from __future__ import annotations

import pytest

from trimtab.run import QUICK, runtimes
from trimtab.run.fusable import INTEGER, SUPPORT, IntegerType


def test_ranges_by_hand() -> None:
    unsigned = IntegerType(8, signed=False, symmetric=False, per_channel=False)
    assert (unsigned.low, unsigned.high) == (0, 255)
    assert (INTEGER.weight.low, INTEGER.weight.high) == (-127, 127)
    asymmetric = IntegerType(4, signed=True, symmetric=False, per_channel=True)
    assert (asymmetric.low, asymmetric.high) == (-8, 7)


@pytest.mark.parametrize("name", QUICK)
def test_what_both_do_each_does(name: str) -> None:
    one = SUPPORT[name]
    assert INTEGER.weighted.keys() <= one.weighted.keys()
    for kind in ("joins", "shares", "concats", "activations", "units"):
        assert getattr(INTEGER, kind) <= getattr(one, kind)
        assert getattr(INTEGER, kind)


def test_every_runtime_has_its_data() -> None:
    assert {r.name for r in runtimes()} <= SUPPORT.keys()
