"""Export: the file computes what the network computes, keeps its names, and holds little else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.run.networks import Tokens, Two, images, quantised, residual
from trimtab.core.errors import ExportError
from trimtab.graph.capture import capture
from trimtab.graph.modes import set_mode
from trimtab.run import OnnxRuntime
from trimtab.run import export as exporting
from trimtab.run.export import difference, export_onnx

PER_LAYER = 1200


def run(path: Path, *inputs: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    return OnnxRuntime().load(path).run([x.numpy() for x in inputs])


def test_the_file_computes_what_the_module_computes_at_any_batch(tmp_path: Path) -> None:
    model, graph = residual()
    export_onnx(graph, tmp_path / "m.onnx")
    for n in (1, 2, 5):
        x = images(n)
        with torch.no_grad():
            np.testing.assert_allclose(run(tmp_path / "m.onnx", x)[0], model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_training_graph_is_exported_evaluating_and_left_as_it_was(tmp_path: Path) -> None:
    model, graph = residual()
    training = set_mode(graph.copy(), True)
    code, before = training.net.code, {k: v.clone() for k, v in training.tensors().items()}
    export_onnx(training, tmp_path / "m.onnx")
    assert training.net.code == code
    assert all(torch.equal(v, before[k]) for k, v in training.tensors().items())
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", images())[0], model(images()).numpy(), atol=1e-5)


def test_the_file_holds_the_users_names_and_nothing_to_spare(tmp_path: Path) -> None:
    _, graph = residual()
    export_onnx(graph, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    names = {t.name for t in model.graph.initializer}
    assert {"stem.weight", "conv1.weight", "conv1.bias", "conv2.weight", "head.weight", "head.bias"} <= names
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == list(graph.outputs)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not model.graph.value_info
    assert not model.metadata_props
    assert not model.producer_name
    assert not any(node.name or node.doc_string or node.metadata_props for node in model.graph.node)
    assert sum(node.op_type == "Slice" for node in model.graph.node) == 1
    assert {"Identity", "Dropout", "BatchNormalization"}.isdisjoint(n.op_type for n in model.graph.node)
    weights = sum(4 * t.numel() for name, t in graph.tensors().items() if "weight" in name)
    assert (tmp_path / "m.onnx").stat().st_size < weights + 4 * PER_LAYER


def test_a_quantised_file_holds_int8_weights_in_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    model, _ = residual()
    graph = quantised(model, images(16))
    export_onnx(graph, tmp_path / "q.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    for name in ("stem.weight", "conv1.weight", "conv2.weight", "head.weight"):
        np.testing.assert_array_equal(held[name], graph.tensors()[name].numpy())
        assert held[name].dtype == np.int8
    weights = sum(t.numel() for name, t in graph.tensors().items() if name.endswith("weight"))
    assert (tmp_path / "q.onnx").stat().st_size < weights + 4 * PER_LAYER
    with torch.no_grad():
        expected = graph(images(7)).numpy()
    assert difference(run(tmp_path / "q.onnx", images(7))[0], expected, True) < 0.05


def test_a_transposed_weight_keeps_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    x = torch.randn(4, 6, 8)
    export_onnx(capture(model, x), tmp_path / "m.onnx")
    export_onnx(quantised(model, x), tmp_path / "q.onnx")
    for file, dtype in (("m.onnx", np.float32), ("q.onnx", np.int8)):
        held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / file).graph.initializer}
        assert held["fc1.weight"].dtype == held["fc2.weight"].dtype == dtype
        assert "Transpose" not in {n.op_type for n in onnx.load(tmp_path / file).graph.node}


def test_several_inputs_and_outputs_keep_order_and_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    a, b = torch.randn(3, 4), torch.randn(3, 3)
    export_onnx(capture(model, (a, b)), tmp_path / "m.onnx")
    session = OnnxRuntime().load(tmp_path / "m.onnx")
    assert [port.name for port in session.inputs] == ["a", "b"]
    assert session.outputs == ("total", "both")
    with torch.no_grad():
        for found, wanted in zip(run(tmp_path / "m.onnx", a, b), model(a, b).values(), strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_a_file_that_disagrees_is_refused_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graph = residual()
    (tmp_path / "m.onnx").write_bytes(b"old")
    honest = exporting.pack

    def wrong(model: Any, parameters: Any) -> Any:
        packed = honest(model, parameters)
        tensor = next(t for t in packed.graph.initializer if t.name == "head.bias")
        tensor.raw_data = (numpy_helper.to_array(tensor) + np.float32(0.01)).tobytes()
        return packed

    monkeypatch.setattr(exporting, "pack", wrong)
    with pytest.raises(ExportError, match="something else than the network") as caught:
        export_onnx(graph, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_constants_too_large_for_one_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = residual()
    monkeypatch.setattr(exporting, "_SEPARATE", 1000)
    export_onnx(graph, tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx").stat().st_size < (tmp_path / "m.onnx.data").stat().st_size
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "m.onnx", images())[0], model(images()).numpy(), atol=1e-5)


def test_an_operator_without_onnx_form_is_one_line(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    graph = capture(Odd(), torch.eye(3).repeat(2, 1, 1))
    with pytest.raises(ExportError) as caught:
        export_onnx(graph, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "linalg_eigh" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_difference_by_hand() -> None:
    expected = np.array([3.0, -4.0])
    assert difference(np.array([3.0, -3.0]), expected, False) == pytest.approx(1 / 4)
    assert difference(np.array([3.0, -3.0]), expected, True) == pytest.approx(1 / 5)
    assert difference(np.array([[3.0, -4.0]]), expected, False) == float("inf")
    assert difference(np.array([3.0, np.nan]), expected, False) == float("inf")
    assert difference(np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0]), False) == 0.0
