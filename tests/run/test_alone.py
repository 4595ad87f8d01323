"""Alone: layers timed in the runtimes that read no ONNX file."""

from __future__ import annotations

import pytest

from trimtab.hardware.layer import Layer
from trimtab.run import runtime
from trimtab.run.branches import layer_times

SMALL = Layer(8, 8, (3, 3), (8, 8), (1, 1), (1, 1), (1, 1))
LARGE = Layer(64, 64, (3, 3), (32, 32), (1, 1), (1, 1), (1, 1))  # 1024 times the work
LINEAR = Layer(256, 256, spatial=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executorch", "inductor"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_more_work_takes_longer(name: str, precision: str) -> None:
    if why := runtime(name).available():
        pytest.skip(why)
    found = layer_times([SMALL, LARGE, LINEAR], precision, name)
    assert set(found) == {SMALL, LARGE, LINEAR}
    assert LARGE.macs == 1024 * SMALL.macs
    assert 0 < found[SMALL] < found[LARGE] / 3  # a call of oneDNN's quantised convolution alone takes 0.03 ms
    assert found[LARGE] < 1.0
