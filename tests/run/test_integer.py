"""Integer: what is quantised runs in integers, and what would not is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.run.networks import Tokens, images, quantised, residual
from trimtab.core.errors import InputError, NotInteger
from trimtab.run import runtime
from trimtab.run.export import export_onnx
from trimtab.run.integer import integer_report, require_integer

RUNTIMES = ["onnxruntime", "openvino"]


def needs(name: str) -> None:
    why = runtime(name).available()
    if why:
        pytest.skip(why)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integer")
    model, graph = residual()
    export_onnx(graph, folder / "float.onnx")
    export_onnx(quantised(model, images(16)), folder / "int8.onnx")
    return folder


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_quantised_layer_runs_in_int8(name: str, files: Path) -> None:
    needs(name)
    report = require_integer(files / "int8.onnx", name)
    assert [layer.name for layer in report] == ["stem", "conv1", "conv2", "head"]
    assert all(layer.quantised and layer.precision == "int8" and layer.kernel for layer in report)
    if name == "onnxruntime":
        assert [layer.kernel for layer in report] == ["QLinearConv"] * 3 + ["QGemm"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_float_file_has_nothing_to_require(name: str, files: Path) -> None:
    needs(name)
    report = require_integer(files / "float.onnx", name)
    assert [layer.name for layer in report] == ["stem", "conv1", "conv2", "head"]
    assert not any(layer.quantised for layer in report)
    assert {layer.precision for layer in report} == {"fp32"}


def test_a_zero_point_that_relu_cannot_be_folded_into_is_named(files: Path, tmp_path: Path) -> None:
    model = onnx.load(files / "int8.onnx")
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    behind = next(n for n in model.graph.node if relu.output[0] in n.input)
    assert behind.op_type == "QuantizeLinear"
    model.graph.initializer.append(numpy_helper.from_array(np.array(7, np.uint8), "seven"))
    for node in model.graph.node:
        if node is behind or behind.output[0] in node.input:
            node.input[2] = "seven"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(NotInteger, match=r"floating point: stem: got 3 of 4 in int8") as caught:
        require_integer(tmp_path / "bad.onnx", "onnxruntime")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RUNTIMES)
def test_linear_layers_on_sequences_run_in_int8(name: str, tmp_path: Path) -> None:
    needs(name)
    torch.manual_seed(0)
    export_onnx(quantised(Tokens().eval(), torch.randn(16, 6, 8)), tmp_path / "q.onnx")
    report = require_integer(tmp_path / "q.onnx", name)
    assert [layer.name for layer in report] == ["fc1", "fc2"]


def test_an_unknown_runtime_is_refused(files: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime or openvino"):
        integer_report(files / "int8.onnx", "tensorrt")
