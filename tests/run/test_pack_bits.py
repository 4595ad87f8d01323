"""Levels in few bits: the file is as small as the arithmetic says, computes the same, and runs the same kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trimtab.graph.bits import packed_bytes
from trimtab.run import runtime
from trimtab.run.bits import parts
from trimtab.run.onnxruntime import optimise
from trimtab.run.pack import pack

LIMITS = {1: (-1, 1), **{bits: (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in range(2, 9)}}


def levels(bits: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Random levels of so many bits, both ends among them."""
    low, high = LIMITS[bits]
    generator = np.random.default_rng(seed)
    found = generator.choice([-1, 1], shape) if bits == 1 else generator.integers(low, high + 1, shape)
    found.reshape(-1)[:2] = low, high
    return found.astype(np.int8)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def convolution(weight: np.ndarray[Any, Any], top: int = 255, quantised: bool = True) -> Any:
    """`y = Q(relu(conv(Q(x), DQ(weight))))`, or without the quantising of activations."""
    generator = np.random.default_rng(1)
    out, width = weight.shape[:2]
    constants = {
        "conv.weight": weight,
        "s": generator.uniform(0.05, 0.1, out).astype(np.float32),
        "z": np.zeros(out, np.int8),
        "conv.bias": generator.normal(size=out).astype(np.float32),
        "xs": np.float32(4 / top),
        "xz": np.uint8(top // 2),
        "ys": np.float32(8 / top),
        "yz": np.uint8(0),
    }
    clip = top < 255
    constants |= {f"{name}{end}": np.uint8(value) for name in "xy" for end, value in (("l", 0), ("h", top))}

    def rounded(name: str) -> list[Any]:
        ends = [node("Clip", f"{name}q {name}l {name}h", f"{name}c")] if clip else []
        back = node("DequantizeLinear", f"{name}{'c' if clip else 'q'} {name}s {name}z", f"{name}d")
        return [node("QuantizeLinear", f"{name} {name}s {name}z", f"{name}q"), *ends, back]

    nodes = [
        *(rounded("x") if quantised else []),
        node("DequantizeLinear", "conv.weight s z", "wd", axis=0),
        node("Conv", f"{'xd' if quantised else 'x'} wd conv.bias", "r", pads=[1, 1, 1, 1]),
        node("Relu", "r", "y"),
        *(rounded("y") if quantised else []),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width, 6, 6])],
        [helper.make_tensor_value_info("yd" if quantised else "y", TensorProto.FLOAT, ["n", out, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: Any, optimised: bool) -> np.ndarray[Any, Any]:
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return computed(model, (3, width, 6, 6), optimised)


def computed(model: Any, shape: tuple[int, ...], optimised: bool) -> np.ndarray[Any, Any]:
    """The first output on random values of `x`, with or without ONNX Runtime's optimiser."""
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def kinds(path: Path) -> list[str]:
    optimise(path, path.with_suffix(".optimised"))
    return [n.op_type for n in onnx.load(path.with_suffix(".optimised")).graph.node]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (41, 23, 3, 3)])
def test_every_width_computes_the_same_in_integers_from_fewer_bytes(
    bits: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    before = convolution(levels(bits, shape))
    after = pack(before, {"conv.weight": np.zeros(0)})
    onnx.checker.check_model(after)
    for optimised in (False, True):
        np.testing.assert_array_equal(run(after, optimised), run(before, optimised))
    (tmp_path / "m.onnx").write_bytes(after.SerializeToString())
    found = kinds(tmp_path / "m.onnx")
    assert found.count("QLinearConv") == 1
    assert {"Conv", "FusedConv", "Gather", "Cast", "Add"}.isdisjoint(found)
    stored = {t.name: t for t in after.graph.initializer}["conv.weight"]
    if bits == 8:
        assert stored.data_type == TensorProto.INT8
    else:
        assert stored.data_type in (TensorProto.INT4, TensorProto.UINT4)
    if bits in (1, 2, 4):
        assert len(stored.raw_data) == packed_bytes(int(np.prod(shape)), bits)


@pytest.mark.parametrize("bits", range(1, 8))
def test_packed_constants_take_the_bytes_of_the_arithmetic(bits: int) -> None:
    weight = levels(bits, (64, 64, 3, 3))
    after = pack(convolution(weight))
    small = sum(
        len(t.raw_data) for t in after.graph.initializer if t.data_type in (TensorProto.INT4, TensorProto.UINT4)
    )
    assert small == sum(packed_bytes(weight.size, part.width) for part in parts(bits))
    assert small == weight.size * bits // 8
    whole = len(pack(convolution(levels(8, (64, 64, 3, 3)))).SerializeToString())
    assert whole - len(after.SerializeToString()) > weight.size * (8 - bits) // 8 - 1100


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 8), out=st.integers(1, 9), width=st.integers(1, 9), side=st.sampled_from([1, 3]))
def test_odd_shapes_too(bits: int, out: int, width: int, side: int) -> None:
    weight = np.pad(levels(bits, (out + 1, width, 1, side)), ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    if side == 1:
        weight = np.repeat(weight, 3, 3)
    before = convolution(weight)
    after = pack(before)
    assert len(after.SerializeToString()) <= len(pack(convolution(levels(8, weight.shape))).SerializeToString())
    np.testing.assert_array_equal(run(after, True), run(before, True))
    np.testing.assert_array_equal(run(after, False), run(before, False))


def test_several_layers_share_a_table() -> None:
    first, second = convolution(levels(2, (16, 16, 3, 3))), convolution(levels(2, (16, 16, 3, 3), seed=5))
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "a/"), onnx.compose.add_prefix(second, "b/"), [("a/yd", "b/x")]
    )
    packed = pack(joined)
    assert [list(t.dims) for t in packed.graph.initializer if list(t.dims) == [16, 2]] == [[16, 2]]
    x = np.random.default_rng(2).normal(size=(3, 16, 6, 6)).astype(np.float32)
    found = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"a/x": x})[0]
        for m in (joined, packed)
    ]
    np.testing.assert_array_equal(*found)


def test_small_tensors_stay_as_they_are() -> None:
    after = pack(convolution(levels(4, (2, 2, 3, 3))))
    assert [t.data_type for t in after.graph.initializer if list(t.dims) == [2, 2, 3, 3]] == [TensorProto.INT8]
    assert [o.version for o in after.opset_import] == [20]


@pytest.mark.parametrize("top", [3, 15, 63])
def test_activations_of_fewer_bits_run_in_integers(top: int, tmp_path: Path) -> None:
    model = pack(convolution(levels(4, (16, 8, 3, 3)), top=top))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = kinds(tmp_path / "m.onnx")
    assert "QLinearConv" in found
    assert {"Conv", "FusedConv"}.isdisjoint(found)
    levels_out = np.unique(np.round(run(model, True) / np.float32(8 / top)))
    assert levels_out.min() == 0
    assert levels_out.max() == top
    gap = run(model, True) - run(model, False)  # the bias is rounded to 32-bit integers
    assert np.abs(gap).max() <= 8 / top * 1.01
    assert np.mean(gap != 0) < 0.02


def test_weights_alone_are_widened_once_at_load(tmp_path: Path) -> None:
    before = convolution(levels(4, (16, 8, 3, 3)), quantised=False)
    after = pack(before)
    np.testing.assert_array_equal(run(after, False), run(before, False))
    np.testing.assert_allclose(run(after, True), run(before, True), rtol=1e-5, atol=1e-5)
    (tmp_path / "m.onnx").write_bytes(after.SerializeToString())
    assert {"DequantizeLinear", "Cast", "Mul", "Gather"}.isdisjoint(kinds(tmp_path / "m.onnx"))
    assert len(after.SerializeToString()) < 16 * 8 * 9 // 2 + 900


@pytest.mark.parametrize("bits", range(1, 9))
def test_openvino_runs_every_width_in_integers(bits: int, tmp_path: Path) -> None:
    if runtime("openvino").available():
        pytest.skip("openvino is not installed")
    from trimtab.run.openvino import compiled

    path = tmp_path / "m.onnx"
    model = pack(convolution(levels(bits, (16, 8, 3, 3)), top=255 if bits % 2 else 15))
    path.write_bytes(model.SerializeToString())
    network = compiled(path, 3, 1, "f32")
    facts = [op.get_rt_info() for op in network.get_runtime_model().get_ops()]
    runs = [f["primitiveType"].astype(str) for f in facts if f["layerType"].astype(str) == "Convolution"]
    assert len(runs) == 1
    assert runs[0].endswith("I8")
    x = np.random.default_rng(2).normal(size=(3, 8, 6, 6)).astype(np.float32)
    step = 8 / (255 if bits % 2 else 15)
    assert np.abs(network([x])[0] - run(model, True)).max() <= step * 1.01
