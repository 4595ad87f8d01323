"""Own kernels: what ExecuTorch and Inductor say that they execute, in order, by the user's layers."""

import pytest

from tests.run.networks import images, quantised, residual
from trimtab.run import runtime
from trimtab.run.cpu import Cpu
from trimtab.run.kernels import OWN

LAYERS = ["stem", "conv1", "conv2", "head"]


def kernels(name, integer):
    if why := runtime(name).available():
        pytest.skip(why)
    from trimtab.run.own_kernels import own_kernels

    model, graph = residual()
    made = quantised(model, images(16), Cpu(name).support) if integer else graph
    return own_kernels(made, name, 2, 1, runs=20)


def test_they_are_the_runtimes_that_read_no_onnx():
    assert OWN == ("executorch", "inductor")


@pytest.mark.parametrize("integer", [False, True], ids=["fp32", "int8"])
def test_executorch_names_its_kernels_by_layer(integer):
    found = kernels("executorch", integer)
    products = [k for k in found if k.name.startswith(("Convolution", "Fully"))]
    assert [k.covers for k in products] == [(name,) for name in LAYERS]
    assert all(("QC8" in k.name) == integer for k in products)
    assert {k.kind for k in found} == {"XNNPACK", "portable"}
    portable = [k for k in found if k.kind == "portable"]
    assert [k.name for k in portable] == ["slice_copy.Tensor_out"] * 2  # every second pixel of the shortcut
    assert all(0 < k.seconds < 0.1 for k in found)


@pytest.mark.slow
@pytest.mark.parametrize("integer", [False, True], ids=["fp32", "int8"])
def test_inductor_names_its_kernels(integer):
    found = kernels("inductor", integer)
    named = [k.covers[0] for k in found if k.covers]
    assert named in ([], LAYERS)  # its order is its own: all layers are named, or none
    assert any("cpp_fused" in k.name for k in found)
    products = [k for k in found if k.kind == "oneDNN"]
    assert len(products) == 4
    assert all(("qconv" in k.name or "qlinear" in k.name) == integer for k in products)
    assert all(0 <= k.seconds < 0.1 for k in found)
