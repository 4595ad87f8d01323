"""Pack: every rewrite leaves what the model computes as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trimtab.run.pack import pack


def model_of(nodes: list[Any], constants: dict[str, Any], output: str = "y", rank: int = 4) -> Any:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6][:rank])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.doc_string = "to be dropped"
    return model


def same(before: Any, after: Any, rank: int = 4) -> list[str]:
    """Check that both compute the same; the operators that are left."""
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 6)[:rank]).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    a, b = (
        onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )
        for m in (before, after)
    )
    np.testing.assert_array_equal(a[0], b[0])
    return [node.op_type for node in after.graph.node]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, ["" if n == "-" else n for n in inputs.split()], outputs.split(), **attributes)


def test_what_does_nothing_goes() -> None:
    largest = np.iinfo(np.int64).max
    constants = {"s": [0], "e": [largest], "a": [2], "p": np.zeros(8, np.int64), "k": np.float32(2)}
    nodes = [
        node("Identity", "x", "a1"),
        node("Dropout", "a1", "a2"),
        node("Slice", "a2 s e a", "a3"),
        node("Pad", "a3 p", "a4"),
        node("Mul", "a4 k", "y"),
        node("Relu", "a4", "unused"),
    ]
    before = model_of(nodes, constants)
    assert same(before, pack(before)) == ["Mul"]


def test_slices_along_different_axes_become_one() -> None:
    constants = {"s": [0], "e": [99], "h": [2], "w": [3], "t": [2], "one": [1]}
    nodes = [node("Slice", "x s e h t", "m"), node("Slice", "m one e w t", "y")]
    before = model_of(nodes, constants)
    assert same(before, pack(before)) == ["Slice"]


def test_slices_along_one_axis_or_of_a_value_read_twice_stay() -> None:
    constants = {"s": [1], "e": [99], "h": [2], "w": [3]}
    before = model_of([node("Slice", "x s e h", "m"), node("Slice", "m s e h", "y")], constants)
    assert same(before, pack(before)) == ["Slice", "Slice"]
    twice = [
        node("Slice", "x s e h", "m"),
        node("Slice", "m s e w", "o"),
        node("ReduceSum", "m", "r"),
        node("Add", "o r", "y"),
    ]
    before = model_of(twice, constants)
    assert same(before, pack(before)).count("Slice") == 2


def test_equal_constants_and_equal_nodes_are_kept_once() -> None:
    constants = {"k1": np.float32(2), "k2": np.float32(2)}
    nodes = [node("Mul", "x k1", "a"), node("Mul", "x k2", "b"), node("Add", "a b", "y")]
    before = model_of(nodes, constants)
    after = pack(before)
    assert same(before, after) == ["Mul", "Add"]
    assert len(after.graph.initializer) == 1


def test_constants_are_folded_but_not_into_a_larger_file() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.full(4, 3, np.float32))),
        node("Reshape", "c shape", "r"),
        node("Mul", "x r", "m"),
        node("Expand", "c big", "wide"),
        node("ReduceSum", "wide", "sum", keepdims=0),
        node("Add", "m sum", "y"),
    ]
    before = model_of(nodes, {"shape": [1, 4, 1, 1], "big": [1000, 4]})
    assert same(before, pack(before)) == ["Mul", "Expand", "ReduceSum", "Add"]


def test_int8_weights_stay_integers_and_float_ones_are_quantised_now() -> None:
    constants = {"w": np.eye(4, dtype=np.int8), "f": np.eye(4, dtype=np.float32), "s": np.float32(0.5), "z": np.int8(0)}
    nodes = [
        node("DequantizeLinear", "w s z", "wd"),
        node("QuantizeLinear", "f s z", "fq"),
        node("DequantizeLinear", "fq s z", "fd"),
        node("MatMul", "x wd", "m"),
        node("MatMul", "m fd", "y"),
    ]
    before = model_of(nodes, constants, rank=2)
    after = pack(before)
    assert sorted(same(before, after, rank=2)) == ["DequantizeLinear"] * 2 + ["MatMul"] * 2
    kinds = [t.data_type for t in after.graph.initializer if len(t.dims) == 2]
    assert kinds == [TensorProto.INT8] * 2


def test_a_transposed_int8_weight_is_stored_transposed() -> None:
    generator = np.random.default_rng(1)
    constants = {
        "fc.weight": generator.integers(-127, 128, (6, 4)).astype(np.int8),
        "s": generator.random(6).astype(np.float32),
        "z": np.zeros(6, np.int8),
    }
    nodes = [
        node("DequantizeLinear", "fc.weight s z", "d", axis=0),
        node("Transpose", "d", "t", perm=[1, 0]),
        node("MatMul", "x t", "y"),
    ]
    before = model_of(nodes, constants, rank=2)
    after = pack(before, {"fc.weight": constants["fc.weight"]})
    assert same(before, after, rank=2) == ["DequantizeLinear", "MatMul"]
    assert {t.name: list(t.dims) for t in after.graph.initializer}["fc.weight"] == [4, 6]


@pytest.mark.parametrize(("scale", "left"), [(0.1, 2), (0.2, 4)])
def test_quantising_again_alike_is_dropped_and_otherwise_kept(scale: float, left: int) -> None:
    constants = {"s": np.float32(0.1), "t": np.float32(scale), "z": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("QuantizeLinear", "d t z", "q2"),
        node("DequantizeLinear", "q2 t z", "y"),
    ]
    before = model_of(nodes, constants)
    assert len(same(before, pack(before))) == left


def test_names_inside_a_branch_survive() -> None:
    branch = helper.make_graph(
        [node("Add", "inner_k x", "b")], "b", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Neg", "shifted", "c")], "c", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("Add", "x inner_k", "shifted"),
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "cond"),
        helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=other),
    ]
    before = model_of(nodes, {"inner_k": np.float32(3), "zero": np.float32(0)})
    assert same(before, pack(before)) == ["Add", "ReduceSum", "Greater", "If"]


def test_the_argument_is_not_changed() -> None:
    before = model_of([node("Identity", "x", "a"), node("Relu", "a", "y")], {})
    bytes_before = before.SerializeToString()
    pack(before)
    assert before.SerializeToString() == bytes_before
