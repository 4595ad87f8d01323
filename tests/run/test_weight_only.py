"""Weights in integers alone: stored and arranged so that runtimes find their kernels, or widen them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.run.test_pack_bits import computed, convolution, kinds, levels, node
from tests.run.test_pack_bits import run as run_images
from trimtab.core.errors import NotInteger
from trimtab.run.integer import integer_report, require_integer, smaller
from trimtab.run.layers import layers
from trimtab.run.pack import pack
from trimtab.run.plain import plain

INS, OUTS = 64, 48


def linear(nodes: list[Any], rank: int = 2, opset: int = 21, **constants: Any) -> Any:
    """A model of `x` [N, 64] or [N, 5, 64] with the weight [48, 64], as torch's exporter writes linear layers."""
    generator = np.random.default_rng(4)
    own = {
        "fc.weight": levels(4, (OUTS, INS)),
        "fc.bias": generator.normal(size=OUTS).astype(np.float32),
        "blocks": generator.uniform(0.01, 0.1, (OUTS, INS // 32)).astype(np.float32),
        "channels": generator.uniform(0.01, 0.1, OUTS).astype(np.float32),
        "none": np.zeros((OUTS, INS // 32), np.int8),
        "zeros": np.zeros(OUTS, np.int8),
        **constants,
    }
    shape: list[Any] = ["n", 5, INS] if rank == 3 else ["n", INS]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], OUTS])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in own.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def blocks(zeros: bool = True) -> Any:
    return node("DequantizeLinear", f"fc.weight blocks {'none' if zeros else ''}", "w", axis=-1, block_size=32)


def run(model: Any, optimised: bool = False) -> np.ndarray[Any, Any]:
    rank = len(model.graph.input[0].type.tensor_type.shape.dim)
    return computed(model, (3, 5, INS)[3 - rank :], optimised)


def written(model: Any, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("zeros", [False, True])
def test_four_bits_in_blocks_are_half_a_byte_and_one_product(rank: int, zeros: bool, tmp_path: Path) -> None:
    product = (
        [node("Gemm", "x w fc.bias", "y", transB=1)]
        if rank == 2
        else [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "m"), node("Add", "fc.bias m", "y")]
    )
    before = linear([blocks(zeros), *product], rank)
    after = pack(before, {"fc.weight": levels(4, (OUTS, INS))})
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-5)
    held = {t.name: t for t in after.graph.initializer}
    assert (held["fc.weight"].data_type, list(held["fc.weight"].dims)) == (TensorProto.INT4, [INS, OUTS])
    assert len(held["fc.weight"].raw_data) == INS * OUTS // 2
    path = written(after, tmp_path)
    assert "MatMulNBits" in kinds(path)
    assert {"DequantizeLinear", "Gemm", "MatMul"}.isdisjoint(kinds(path))
    (layer,) = require_integer(path, "onnxruntime")
    assert (layer.name, layer.kernel, layer.meant, layer.stored) == ("fc", "MatMulNBits", False, "integers")
    assert smaller((layer,), "onnxruntime") == ()
    assert np.abs(run(after, True) - run(before)).max() < 0.02 * np.abs(run(before)).max()


def test_eight_bits_in_blocks_are_one_product_too(tmp_path: Path) -> None:
    before = linear([blocks(), node("Gemm", "x w fc.bias", "y", transB=1)], **{"fc.weight": levels(8, (OUTS, INS))})
    after = pack(before)
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-4)
    assert "MatMulNBits" in kinds(written(after, tmp_path))


def test_levels_of_a_channel_are_one_product(tmp_path: Path) -> None:
    weight = node("DequantizeLinear", "fc.weight channels zeros", "w", axis=0)
    before = linear([weight, node("Gemm", "x w fc.bias", "y", transB=1)])
    after = pack(before)
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-5)
    assert "MatMulNBits" in kinds(written(after, tmp_path))
    assert {t.data_type for t in after.graph.initializer if len(t.dims) == 2} == {TensorProto.INT4}


def test_ranges_found_as_it_runs_are_an_integer_product(tmp_path: Path) -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "unused xs xz"),
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "fc.weight channels zeros", "w", axis=0),
        node("Gemm", "xd w fc.bias", "y", transB=1),
    ]
    before = linear(nodes)
    after = pack(before, {"fc.weight": levels(4, (OUTS, INS))})
    assert "QuantizeLinear" not in [n.op_type for n in after.graph.node]
    np.testing.assert_allclose(run(after), run(before), rtol=1e-5, atol=1e-5)
    path = written(after, tmp_path)
    assert "DynamicQuantizeMatMul" in kinds(path)
    (layer,) = require_integer(path, "onnxruntime")
    assert (layer.name, layer.precision, layer.meant) == ("fc", "int8", True)


def test_a_weight_that_something_else_reads_stays_as_it_lies() -> None:
    weight = node("DequantizeLinear", "fc.weight channels zeros", "w", axis=0)
    more = [node("ReduceSum", "w", "s", keepdims=0), node("Add", "m s", "y")]
    before = linear([weight, node("Gemm", "x w fc.bias", "m", transB=1), *more])
    np.testing.assert_allclose(run(pack(before)), run(before), rtol=1e-5, atol=1e-5)


def test_an_embedding_is_widened_once(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", "fc.weight channels zeros", "w", axis=0),
        node("Cast", "x", "at", to=TensorProto.INT64),
        node("Gather", "w at", "rows"),
        node("ReduceSum", "rows last", "y", keepdims=0),
    ]
    before = linear(nodes, last=[1])
    before.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    after = pack(before)
    assert "DequantizeLinear" not in kinds(written(after, tmp_path))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_floats_that_fit_are_stored_narrow(kind: int, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    value = np.random.default_rng(0).normal(size=(16, 8, 3, 3)).astype(dtype).astype(np.float32)
    value[0, 0, 0, 0] = -0.0
    before = convolution(levels(8, (16, 8, 3, 3)), quantised=False)
    before.graph.initializer[0].CopyFrom(numpy_helper.from_array(value, "conv.weight"))
    del before.graph.node[0]
    before.graph.node[0].input[1] = "conv.weight"
    after = pack(before, {"conv.weight": value})
    stored = {t.name: t for t in after.graph.initializer}["conv.weight"]
    assert (stored.data_type, len(stored.raw_data)) == (kind, value.size * dtype.itemsize)
    for optimised in (False, True):
        np.testing.assert_array_equal(run_images(after, optimised), run_images(before, optimised))
    path = written(after, tmp_path)
    assert "Cast" not in kinds(path)
    (layer,) = integer_report(path, "onnxruntime")
    assert smaller((layer,), "onnxruntime") == (
        f"Smaller, not faster: onnxruntime computes in floating point what is stored in {layer.stored}: conv.",
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_levels_are_plain_again(bits: int, tmp_path: Path) -> None:
    weight = levels(bits, (64, 16, 3, 3))
    packed = pack(convolution(weight), {"conv.weight": weight})
    again = plain(packed)
    assert (again is packed) == (bits == 8)
    held = {t.name: numpy_helper.to_array(t) for t in again.graph.initializer}
    assert held["conv.weight"].dtype == np.int8
    np.testing.assert_array_equal(held["conv.weight"], weight)
    assert {"Gather", "Cast", "Reshape", "Add"}.isdisjoint(n.op_type for n in again.graph.node)
    np.testing.assert_array_equal(run_images(again, True), run_images(packed, True))
    (layer,) = layers(packed)
    assert (layer.name, layer.quantised, layer.meant) == ("conv", True, True)
    (found,) = require_integer(written(packed, tmp_path), "onnxruntime")
    assert (found.name, found.kernel) == ("conv", "QLinearConv")


def test_a_table_that_gives_too_much_is_not_read() -> None:
    packed = pack(convolution(levels(2, (64, 16, 3, 3))))
    table = next(t for t in packed.graph.initializer if list(t.dims) == [16, 2])
    table.CopyFrom(numpy_helper.from_array(np.zeros((16, 4096), np.int8), table.name))
    assert [list(t.dims) for t in plain(packed).graph.initializer if len(t.dims) == 2] == [[16, 4096]]


@pytest.mark.parametrize("bits", [1, 4])
def test_a_packed_convolution_that_would_run_in_floating_point_is_named(bits: int, tmp_path: Path) -> None:
    weight = levels(bits, (64, 16, 3, 3))
    packed = pack(convolution(weight), {"conv.weight": weight})
    seven = numpy_helper.from_array(np.array(7, np.uint8), "seven")
    packed.graph.initializer.append(seven)
    relu = next(n for n in packed.graph.node if n.op_type == "Relu")
    behind = next(n for n in packed.graph.node if relu.output[0] in n.input)
    for each in packed.graph.node:
        if each is behind or behind.output[0] in each.input:
            each.input[2] = "seven"
    with pytest.raises(NotInteger, match="conv: got 0 of 1 in int8"):
        require_integer(written(packed, tmp_path), "onnxruntime")
    onnx.checker.check_model(packed)
