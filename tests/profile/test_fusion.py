import json

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from tests.profile.small_onnx import model, quantised, residual
from trimtab.core.errors import FileError
from trimtab.graph.capture import capture
from trimtab.profile.fusion import fusion
from trimtab.profile.table import fusion_summary, fusion_table
from trimtab.run import runtime

RUNTIMES = ("onnxruntime", "openvino")
PADS = [1, 1, 1, 1]


def weight(name, outputs, inputs, seed=0):
    return {name: np.random.default_rng(seed).standard_normal((outputs, inputs, 3, 3), np.float32)}


def norm():
    rng = np.random.default_rng(1)
    return {name: rng.random(16, np.float32) + 0.5 for name in ("gamma", "beta", "mean", "variance")}


@pytest.fixture
def of(tmp_path):
    def run(made, name):
        pytest.importorskip(name)
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        return fusion(path, name)

    return run


def by_kind(found):
    """The only fate of each kind of operator."""
    kinds = [fate.operator for fate in found.fates]
    return {fate.operator: fate for fate in found.fates if kinds.count(fate.operator) == 1}


def basic_block():
    """stem, relu, conv1, relu, conv2, plus the stem's result, relu."""
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], pads=PADS),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv1.weight"], ["c"], pads=PADS),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "conv2.weight"], ["e"], pads=PADS),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    constants = {**weight("stem.weight", 16, 3), **weight("conv1.weight", 16, 16), **weight("conv2.weight", 16, 16, 1)}
    return model(nodes, constants, {"x": ["batch", 3, 8, 8]}, {"y": ["batch", 16, 8, 8]})


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_residual_block_is_three_kernels(of, name):
    found = of(basic_block(), name)
    assert [(fate.operator, fate.state, fate.told) for fate in found.fates if fate.state != "added"] == [
        ("Conv", "kernel", "with Relu"),
        ("Relu", "fused", "into Conv stem"),
        ("Conv", "kernel", "with Relu"),
        ("Relu", "fused", "into Conv conv1"),
        ("Conv", "kernel", "with Add, Relu"),
        ("Add", "fused", "into Conv conv2"),
        ("Relu", "fused", "into Conv conv2"),
    ]
    assert found.counts["fused"] == 4
    assert found.counts["kernel"] == 3


def test_openvino_does_not_add_what_the_convolution_reads(of):
    fates = [fate for fate in of(residual(), "openvino").fates if fate.layer == "conv2"]
    assert [(fate.state, "adds what it reads itself" in fate.told) for fate in fates] == [("alone", True)]
    assert "Add" in next(f.told for f in of(residual(), "onnxruntime").fates if f.layer == "conv2")


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_activation_behind_an_output_with_two_readers_is_alone(of, name):
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], pads=PADS),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Conv", ["a", "second.weight"], ["c"], pads=PADS),
        helper.make_node("Concat", ["b", "c"], ["y"], axis=1),
    ]
    constants = {**weight("first.weight", 16, 3), **weight("second.weight", 16, 16)}
    found = of(model(nodes, constants, {"x": [1, 3, 8, 8]}, {"y": [1, 32, 8, 8]}), name)
    fates = by_kind(found)
    assert (fates["Tanh"].state, fates["Tanh"].told) == ("alone", "behind a Conv whose output has 2 readers")
    assert next(f for f in found.fates if f.layer == "first").told == "its output has 2 readers"


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_activation_behind_a_returned_output_is_alone(of, name):
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], pads=PADS),
        helper.make_node("Tanh", ["a"], ["y"]),
    ]
    made = model(nodes, weight("conv.weight", 16, 3), {"x": [1, 3, 8, 8]}, {"y": [1, 16, 8, 8], "a": [1, 16, 8, 8]})
    assert by_kind(of(made, name))["Tanh"].told == "behind a Conv whose output the network returns"


@pytest.mark.parametrize(("readers", "state"), [(1, "fused"), (2, "alone")])
def test_batch_norm_is_folded_unless_the_output_is_read_elsewhere(of, readers, state):
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], pads=PADS),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"]),
        helper.make_node("Concat", ["b", "a" if readers == 2 else "b"], ["y"], axis=1),
    ]
    constants = {**weight("conv.weight", 16, 3), **norm()}
    fate = by_kind(of(model(nodes, constants, {"x": [1, 3, 8, 8]}, {"y": [1, 32, 8, 8]}), "onnxruntime"))
    assert fate["BatchNormalization"].state == state
    if state == "alone":
        expected = "not foldable: behind a Conv whose output has 2 readers"
        assert fate["BatchNormalization"].told == expected


def test_batch_norm_before_everything_has_nothing_to_fold_into(of):
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "variance"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv.weight"], ["y"], pads=PADS),
    ]
    made = model(nodes, {**weight("conv.weight", 8, 16), **norm()}, {"x": [1, 16, 8, 8]}, {"y": [1, 8, 8, 8]})
    fate = by_kind(of(made, "onnxruntime"))["BatchNormalization"]
    assert (fate.state, fate.told) == ("alone", "stands behind the network's input: no weight to fold it into")


def test_a_gate_has_no_kernel_in_onnx_runtime(of):
    """A squeeze-and-excitation gate: the convolution's sigmoid is fused, the product of two computed values is not."""
    nodes = [
        helper.make_node("Conv", ["x", "value.weight"], ["v"], pads=PADS),
        helper.make_node("ReduceMean", ["v"], ["m"], axes=[2, 3], keepdims=1),
        helper.make_node("Softmax", ["m"], ["s"], axis=1),
        helper.make_node("Mul", ["v", "s"], ["y"]),
    ]
    made = model(nodes, weight("value.weight", 16, 3), {"x": [1, 3, 8, 8]}, {"y": [1, 16, 8, 8]})
    made.opset_import[0].version = 17
    fates = by_kind(of(made, "onnxruntime"))
    assert fates["Mul"].state == "alone"
    assert fates["Mul"].told == "a gate: ONNX Runtime has no kernel that multiplies by a computed Softmax"
    assert fates["Softmax"].told == "needs sums over a whole row before its first result"


@pytest.mark.parametrize("name", RUNTIMES)
def test_quantising_operators_are_inside_or_at_the_borders(of, name):
    found = of(quantised(), name)
    assert [(fate.operator, fate.state) for fate in found.fates[:6]] == [
        ("QuantizeLinear", "alone"),
        ("DequantizeLinear", "fused"),
        ("DequantizeLinear", "loading"),
        ("Conv", "kernel"),
        ("QuantizeLinear", "fused"),
        ("DequantizeLinear", "alone" if name == "onnxruntime" else found.fates[5].state),
    ]
    assert found.fates[0].told == "Q/DQ border: the network's input comes in floating point"
    if name == "onnxruntime":
        assert found.fates[5].told == "Q/DQ border: the network's output leaves in floating point"


def test_a_border_inside_the_network_names_what_runs_in_floats(of):
    made = quantised()
    made.graph.node[-1].output[0] = "z"
    made.graph.node.append(helper.make_node("Elu", ["z"], ["y"]))
    found = of(made, "onnxruntime")
    assert found.fates[5].told == "Q/DQ border left: Elu behind it runs in floating point"
    assert found.fates[6].state == "alone"


def test_a_captured_network_and_its_table():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    found = fusion(capture(net.eval(), torch.randn(2, 3, 8, 8)), "onnxruntime")
    data = json.loads(json.dumps(found.json(), allow_nan=False))
    operators = [fate["operator"] for fate in data["operators"] if fate["state"] != "added"]
    assert sum(data["counts"].values()) == len(data["operators"])
    assert f"{len(operators)} operators in the file, {found.kernels} kernels" in fusion_summary(found)
    steps = {fate.step for fate in found.fates if fate.step is not None}
    assert fusion_table(found).row_count == len(steps)
    assert fusion_table(found, 1).row_count == 2


def test_what_does_not_run_is_one_line_with_its_own_name(of):
    made = residual()
    made.graph.node[1].op_type = "Reluu"
    with pytest.raises(FileError, match=r"net\.onnx") as caught:
        of(made, "onnxruntime")
    assert "marked" not in str(caught.value)


def test_runtimes_are_those_tested():
    assert all(runtime(name).name == name for name in RUNTIMES)
