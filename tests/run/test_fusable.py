"""Fusable: the data is consistent, and the ranges are those of the types."""

from __future__ import annotations

import pytest
import torch

from trimtab.run import QUICK, runtimes
from trimtab.run.fusable import ETHOS_U, EXECUTORCH, INTEGER, SUPPORT, IntegerType


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


def test_where_input_weight_and_bias_stand() -> None:
    aten = torch.ops.aten
    found = {op: (kind.source, kind.weight, kind.bias, kind.axis) for op, kind in INTEGER.weighted.items()}
    assert found[aten.linear.default] == found[aten.conv2d.default] == (0, 1, 2, 0)
    assert found[aten.addmm.default] == (1, 2, 0, 1)  # bias + input @ weight
    assert aten.addmm.default not in EXECUTORCH.weighted
    assert aten.addmm.default not in ETHOS_U.weighted
