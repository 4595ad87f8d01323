"""What the bench of quantisation says of two sets of answers, and of the bytes of weights."""

import json

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bench.quantise_files import compared, size, weight_bytes
from bench.quantise_table import points, ranged, report, shrunk

LABELS = torch.arange(10)


def answering(wrong):
    """Outputs [10, 10] that are right on all images but these."""
    outputs = torch.eye(10)
    for i in wrong:
        outputs[i] = outputs[(i + 1) % 10]
    return outputs


def test_compared_counts_images_that_only_one_answers_rightly():
    facts = compared((answering([0, 1]), LABELS), (answering([1, 2, 3]), LABELS), "proving")

    assert facts["accuracy"] == pytest.approx(0.7)
    assert (facts["broken"], facts["mended"]) == (2, 1)
    assert facts["drop"]["value"] == pytest.approx(0.1)
    low, high = facts["drop"]["interval"]
    assert low < 0.1 < high
    assert facts["agreement"] == pytest.approx(0.7)
    json.dumps(facts)


def test_compared_refuses_answers_to_other_images():
    with pytest.raises(AssertionError):
        compared((answering([]), LABELS), (answering([]), LABELS.flip(0)), "proving")


def test_shrunk_counts_only_weights_that_became_smaller():
    original = {"a.weight": 4000, "b.weight": 400, "a.bias": 40}
    packed = {"a.weight": 125, "a.weight_scale": 15, "b.weight": 400, "b.weight_scale": 4, "a.bias": 10}

    assert shrunk(original, packed) == (4000, 125, 15)


def test_size_of_openvinos_form_is_both_files(tmp_path):
    (tmp_path / "m.xml").write_bytes(b"x" * 7)
    (tmp_path / "m.bin").write_bytes(b"y" * 5)
    (tmp_path / "m.onnx").write_bytes(b"z" * 3)

    assert size(tmp_path / "m.xml") == 12
    assert size(tmp_path / "m.onnx") == 3
    assert weight_bytes(tmp_path / "m.xml") == {}


def test_weight_bytes_are_those_in_the_file(tmp_path):
    weight = numpy_helper.from_array(torch.zeros(3, 5, dtype=torch.int8).numpy(), "layer.weight")
    value = helper.make_tensor_value_info("x", TensorProto.INT8, [3, 5])
    other = helper.make_tensor_value_info("y", TensorProto.INT8, [3, 5])
    graph = helper.make_graph([helper.make_node("Max", ["x", "layer.weight"], ["y"])], "g", [value], [other], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")

    assert weight_bytes(tmp_path / "m.onnx") == {"layer.weight": 15}


def test_figures_as_text():
    assert points({"value": 0.0012, "interval": [-0.001, 0.0034]}) == "0.12 [-0.10, 0.34]"
    assert ranged({"value": 2.204, "interval": [2.19, 2.21], "how": "interleaved"}) == "2.20 [2.19, 2.21]"
    assert ranged({"value": 2.0, "interval": [1.0, 3.0], "how": "unreliable: busy"}).endswith("(unsteady)")


def test_report_of_no_rows_has_only_its_words():
    assert report({}, "Title.\n\n    command\n\nHow it is done.") == "# Quantisation\n\nHow it is done.\n"
