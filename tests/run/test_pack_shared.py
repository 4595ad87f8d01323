"""Shared weights in an ONNX file: smaller on disk, and bit for bit the same when a runtime has loaded it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trimtab.graph.shared import codebook_of
from trimtab.run.onnxruntime import OnnxRuntime
from trimtab.run.openvino import OpenVino
from trimtab.run.pack import pack
from trimtab.run.unpacked import unpacked

Array = np.ndarray[Any, Any]


def shared(count: int, shape: tuple[int, ...], block: int = 1) -> Array:
    rng = np.random.default_rng(count)
    codebook = rng.normal(size=(count, block)).astype(np.float32)
    indices = np.r_[np.arange(count), rng.integers(0, count, np.prod(shape) // block - count)]
    return codebook[rng.permutation(indices)].reshape(shape)


def convolution(value: Array) -> Any:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", value.shape[1], 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 15, 16, 17, 32, 100, 256])
@pytest.mark.parametrize("runtime", [OnnxRuntime(), OpenVino()], ids=lambda r: r.name)
def test_every_size_of_codebook_is_looked_up_in_every_runtime(count: int, runtime: Any, tmp_path: Any) -> None:
    value = shared(count, (64, 16, 3, 3))
    plain, packed = convolution(value), pack(convolution(value))
    bits = max(1, (count - 1).bit_length())
    assert packed.ByteSize() < value.size * bits / 8 + 4 * count + 900
    x = np.random.default_rng(1).normal(size=(2, 16, 6, 6)).astype(np.float32)
    found = []
    for i, model in enumerate((plain, packed)):
        onnx.save(model, tmp_path / f"{i}.onnx")
        session = runtime.load(tmp_path / f"{i}.onnx")
        found.append(session.run([x])[0])
        session.close()
    np.testing.assert_array_equal(found[0], found[1])
    constants = {tuple(t.dims): numpy_helper.to_array(t) for t in unpacked(packed).graph.initializer}
    np.testing.assert_array_equal(constants[64, 16, 3, 3], value)


@pytest.mark.parametrize("block", [4, 9])
def test_rows_of_product_quantisation_are_found(block: int) -> None:
    value = shared(200, (64, 36, 3, 3), block)
    packed = pack(convolution(value))
    assert packed.ByteSize() < value.size / block + 200 * block * 4 + 900
    assert "Gather" in [node.op_type for node in packed.graph.node]
    constants = {tuple(t.dims): numpy_helper.to_array(t) for t in unpacked(packed).graph.initializer}
    np.testing.assert_array_equal(constants[64, 36, 3, 3], value)


def test_rows_are_found_in_a_transposed_weight_too() -> None:
    value = np.ascontiguousarray(shared(64, (128, 96), 8).T)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, "w")],
    )
    packed = pack(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert [n.op_type for n in packed.graph.node][-4:] == ["Gather", "Reshape", "Transpose", "MatMul"]
    assert packed.ByteSize() < 128 * 96 / 8 + 64 * 8 * 4 + 500
    constants = {tuple(t.dims): numpy_helper.to_array(t) for t in unpacked(packed).graph.initializer}
    np.testing.assert_array_equal(constants[96, 128], value)


def test_what_would_not_get_smaller_stays() -> None:
    dense = np.random.default_rng(0).normal(size=(64, 16, 3, 3)).astype(np.float32)
    assert codebook_of(dense) is None
    assert [n.op_type for n in pack(convolution(dense)).graph.node] == ["Conv", "Relu"]
    few = shared(4, (4, 4, 2, 1))  # 128 bytes: the nodes would take as much
    assert [n.op_type for n in pack(convolution(few)).graph.node] == ["Conv", "Relu"]


def test_a_codebook_holds_values_bit_for_bit() -> None:
    value = np.array([0.0, -0.0, np.float32(1e-40), np.inf] * 64, np.float32).reshape(16, 16)
    found = codebook_of(value)
    assert found is not None
    assert np.array_equal(found.tensor().view(np.uint32), value.view(np.uint32))
    assert found.entries <= 4
