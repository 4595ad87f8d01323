import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.profile.small_onnx import model, quantised, residual
from trimtab.core.errors import FileError, InputError, TrimtabError
from trimtab.profile.network import read, write


@pytest.fixture
def saved(tmp_path):
    def save(made):
        path = tmp_path / "net.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    return save


def test_layers_have_the_users_names_and_costs_by_hand(saved):
    network = read(saved(residual()), batch=2)
    found = [(op.kind, op.layer, op.macs) for op in network.ops if op.macs]
    assert found == [
        ("Conv", "conv1", 2 * 64 * 16 * 27),
        ("Conv", "conv2", 2 * 64 * 16 * 144),
        ("MatMul", "fc", 2 * 16 * 10),
    ]
    assert network.bytes_of("e") == 2 * 16 * 64 * 4
    assert network.batch == 2
    assert network.notes == ()


def test_parameters_are_weights_and_biases_and_nothing_else(saved):
    network = read(saved(residual()))
    assert network.parameters(network.ops) == 16 * 27 + 16 + 16 * 144 + 160  # the axes of the mean are none


def test_quantised_weights_are_found_behind_their_dequantisation(saved):
    network = read(saved(quantised()))
    (layer,) = [op for op in network.ops if op.macs]
    assert (layer.layer, layer.weights, layer.macs) == ("conv", ("conv.weight",), 36 * 8 * 36)
    assert network.parameters(network.ops) == 8 * 36
    assert network.bytes_of("conv.weight") == 8 * 36


def test_a_shared_constant_names_no_layer_that_does_not_multiply(saved):
    constants = {"first.bias": np.ones(4, np.float32), "head.weight": np.ones((4, 4), np.float32)}
    nodes = [
        helper.make_node("Add", ["x", "first.bias"], ["a"]),
        helper.make_node("MatMul", ["a", "head.weight"], ["b"]),
        helper.make_node("Add", ["b", "first.bias"], ["c"]),
        helper.make_node("MatMul", ["c", "head.weight"], ["y"]),
    ]
    network = read(saved(model(nodes, constants, {"x": ["batch", 4]}, {"y": ["batch", 4]})))
    assert [op.layer for op in network.ops] == ["", "head", "", "head"]
    assert network.parameters(network.ops) == 4 + 16


def test_the_marked_model_computes_the_same(saved, tmp_path):
    made = residual()
    network = read(saved(made))
    write(network, tmp_path / "marked.onnx")
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), np.float32)
    marked = onnx.load(tmp_path / "marked.onnx")
    onnx.checker.check_model(marked, full_check=True)
    assert [node.name for node in marked.graph.node][:2] == ["@0@Conv", "@1@Relu"]
    (expected,), (found,) = (ReferenceEvaluator(m).run(None, {"x": x}) for m in (made, marked))
    np.testing.assert_array_equal(found, expected)


def test_names_in_branches_are_marked_too(saved):
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["a"], [f"{kind}.out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}.out", onnx.TensorProto.FLOAT, [1, 4])],
        )
        for kind in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    made = model(nodes, {"yes": np.array(True)}, {"x": [1, 4]}, {"y": [1, 4]})
    network = read(saved(made))
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    (found,) = ReferenceEvaluator(network.model).run(None, {"x": x})
    np.testing.assert_array_equal(found, -x)
    assert "branches and loops of 1 nodes are not counted" in network.notes[0]


def test_a_fixed_batch_is_kept_and_told(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    assert read(saved(made), batch=1).batch == 3


def test_another_free_size_is_refused(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match="input x has a free size height in dimension 2"):
        read(saved(made))


def test_inputs_beyond_reason_are_refused(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    with pytest.raises(FileError, match="inputs of"):
        read(saved(made))


def test_a_negative_size_is_a_file_error(saved):
    made = residual()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -4
    with pytest.raises(FileError):
        read(saved(made))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 40])
def test_what_is_no_model_is_a_file_error(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"bad\.onnx"):
        read(path)


def test_a_missing_file_is_a_file_error(tmp_path):
    with pytest.raises(FileError, match=r"none\.onnx"):
        read(tmp_path / "none.onnx")


def test_a_cut_or_changed_file_is_read_or_refused_but_never_crashes(saved):
    whole = residual().SerializeToString()
    rng = np.random.default_rng(0)
    refused, lines = 0, set()
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))])
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(0, 256)
        path = saved(residual())
        path.write_bytes(bytes(data))
        try:
            read(path)
        except TrimtabError as error:
            refused += 1
            lines.update(str(error).splitlines()[1:])
    assert refused > 30
    assert not lines


def test_external_data_outside_the_folder_is_refused(saved):
    made = residual()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../elsewhere"
    with pytest.raises(FileError, match="elsewhere"):
        read(saved(made))
