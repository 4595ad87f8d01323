"""Sparse constants: the file is as small as the arithmetic says, computes the same, and runs the same kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from trimtab.run import runtime
from trimtab.run.pack import pack

from .test_pack_bits import convolution, kinds, run

Array = np.ndarray[Any, Any]


def sparse(shape: tuple[int, ...], zeros: float, seed: int = 0) -> Array:
    """Normal values of which a share is zero."""
    generator = np.random.default_rng(seed)
    value = generator.normal(size=shape).astype(np.float32)
    flat = value.reshape(-1)
    flat[generator.permutation(flat.size)[: round(zeros * flat.size)]] = 0.0
    return value


def few(shape: tuple[int, ...], zeros: float, top: int, seed: int = 0) -> Array:
    """The same as int8 levels, none of the others zero."""
    value = sparse(shape, zeros, seed)
    levels = np.clip(np.round(value * top / 2), -top, top)
    levels = np.where((levels == 0) & (value != 0), 1, levels).astype(np.int8)
    levels.reshape(-1)[np.flatnonzero(levels)[:2]] = (-top, top)
    return levels


def in_floats(weight: Array) -> Any:
    """`y = relu(conv(x, weight))`."""
    model = convolution(np.zeros(weight.shape, np.int8), quantised=False)
    graph = model.graph
    del graph.node[0]
    graph.node[0].input[1] = "conv.weight"
    left = [t for t in graph.initializer if t.name == "conv.bias"]
    del graph.initializer[:]
    graph.initializer.extend([*left, onnx.numpy_helper.from_array(weight, "conv.weight")])
    return model


def stored(model: Any) -> dict[str, Any]:
    return {t.name: t for t in model.graph.initializer}


@pytest.mark.parametrize("zeros", [0.5, 0.9, 0.98])
def test_floats_take_a_mask_and_the_values_that_are_left(zeros: float, tmp_path: Path) -> None:
    weight = sparse((64, 32, 3, 3), zeros)
    before = in_floats(weight)
    after = pack(before, {"conv.weight": weight})
    onnx.checker.check_model(after)
    left, bits = np.count_nonzero(weight), weight.size / 8
    assert stored(after)["conv.weight"].dims == [left]
    assert after.ByteSize() < 4 * left + bits + 1100
    assert zeros < 0.98 or after.ByteSize() < 4 * left + bits / 2 + 1100  # the mask is sparse too
    np.testing.assert_array_equal(run(after, True), run(before, True))
    np.testing.assert_array_equal(run(after, False), run(before, False))
    (tmp_path / "m.onnx").write_bytes(after.SerializeToString())
    (tmp_path / "d.onnx").write_bytes(before.SerializeToString())
    assert kinds(tmp_path / "m.onnx") == kinds(tmp_path / "d.onnx")


@pytest.mark.parametrize(("top", "bits"), [(127, 8), (7, 4), (1, 1)])
def test_levels_keep_their_bits_and_their_integer_kernel(top: int, bits: int, tmp_path: Path) -> None:
    weight = few((64, 32, 3, 3), 0.9, top)
    before = convolution(weight)
    after, plain = pack(before, {"conv.weight": weight}), pack(convolution(few((64, 32, 3, 3), 0.1, top)))
    left = np.count_nonzero(weight)
    assert after.ByteSize() < left * bits / 8 + 0.65 * weight.size / 8 + 2400
    assert after.ByteSize() < plain.ByteSize()
    for optimised in (False, True):
        np.testing.assert_array_equal(run(after, optimised), run(before, optimised))
    (tmp_path / "m.onnx").write_bytes(after.SerializeToString())
    found = kinds(tmp_path / "m.onnx")
    assert found.count("QLinearConv") == 1
    assert {"Conv", "TopK", "ScatterElements", "Gather", "Cast", "Reshape"}.isdisjoint(found)


def test_openvino_holds_plain_constants_and_computes_the_same(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    x = np.random.default_rng(2).normal(size=(2, 32, 6, 6)).astype(np.float32)
    for name, model in (
        ("f", in_floats(sparse((64, 32, 3, 3), 0.9))),
        ("i", convolution(few((64, 32, 3, 3), 0.9, 127))),
    ):
        layers, outputs = [], []
        for form, made in (("plain", model), ("sparse", pack(model))):
            path = tmp_path / f"{name}-{form}.onnx"
            path.write_bytes(made.SerializeToString())
            compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            nodes = compiled.get_runtime_model().get_ordered_ops()
            layers.append([n.get_rt_info()["layerType"].value for n in nodes])
            outputs.append(runtime("openvino").load(path, batch=2).run([x])[0])
        assert layers[0] == layers[1]
        np.testing.assert_array_equal(*outputs)


def test_what_would_not_be_smaller_stays() -> None:
    dense, small = in_floats(sparse((64, 32, 3, 3), 0.03)), in_floats(sparse((4, 4, 3, 3), 0.5))
    for model in (dense, small):
        assert pack(model).ByteSize() <= model.ByteSize()
        assert all(t.data_type != TensorProto.UINT4 for t in pack(model).graph.initializer)
    # 4-bit levels of which 30 % are zero: a mask takes what the zeros would save
    levels = few((64, 32, 3, 3), 0.22, 7)
    assert len(stored(pack(convolution(levels), {"conv.weight": levels}))["conv.weight"].dims) == 4


def test_negative_zeros_and_no_value_at_all_come_back_as_they_were() -> None:
    weight = sparse((64, 32, 3, 3), 0.9)
    flat = weight.reshape(-1)
    flat[np.flatnonzero(flat)[:5]] = -0.0
    after = pack(in_floats(weight), {"conv.weight": weight})
    values = onnx.numpy_helper.to_array(stored(after)["conv.weight"])
    assert int(np.signbit(values[values == 0]).sum()) == 5
    nothing = in_floats(np.zeros((64, 32, 3, 3), np.float32))
    np.testing.assert_array_equal(run(pack(nothing), True), run(nothing, True))


def test_values_that_fit_a_narrow_type_or_a_codebook_are_stored_so() -> None:
    half = sparse((64, 32, 3, 3), 0.9).astype(np.float16).astype(np.float32)
    after = pack(in_floats(half), {"conv.weight": half})
    assert stored(after)["conv.weight"].data_type == TensorProto.FLOAT16
    np.testing.assert_array_equal(run(after, True), run(in_floats(half), True))
    book = np.random.default_rng(1).normal(size=15).astype(np.float32)
    shared = sparse((64, 32, 3, 3), 0.9)
    shared[shared != 0] = book[np.random.default_rng(2).integers(0, 15, np.count_nonzero(shared))]
    after = pack(in_floats(shared), {"conv.weight": shared})
    assert after.ByteSize() < np.count_nonzero(shared) / 2 + shared.size / 8 + 1500
    np.testing.assert_array_equal(run(after, True), run(in_floats(shared), True))


@settings(max_examples=15, deadline=None)
@given(
    out=st.integers(1, 40),
    width=st.integers(1, 40),
    zeros=st.floats(0.3, 0.995),
    seed=st.integers(0, 99),
    levels=st.booleans(),
)
def test_odd_shapes_too(out: int, width: int, zeros: float, seed: int, levels: bool) -> None:
    weight = sparse((out, width, 3, 3), zeros, seed)
    model = convolution(np.clip(np.round(weight * 40), -127, 127).astype(np.int8)) if levels else in_floats(weight)
    after = pack(model)
    np.testing.assert_array_equal(run(after, True), run(model, True))
