"""Score and agreement, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.run.networks import Two, images, residual
from trimtab.core.errors import InputError
from trimtab.core.task import accuracy
from trimtab.graph.capture import capture
from trimtab.graph.model import Outputs
from trimtab.run.export import export_onnx
from trimtab.run.score import agreement, file_outputs, max_difference, score_of, wilson


def test_agreement_of_classes_is_the_share_of_equal_choices() -> None:
    a = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    b = torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.6, 0.4]])
    found = agreement(a, b)
    assert found.value == 0.75
    assert found.n == 4
    assert found.interval == pytest.approx(wilson(0.75, 4))
    assert agreement(Outputs({"logits": a}), Outputs({"logits": a})).value == 1.0


def test_agreement_of_numbers_is_one_minus_the_relative_error() -> None:
    a = torch.tensor([[3.0], [4.0]])
    assert agreement(a, a).value == 1.0
    assert agreement(a, torch.tensor([[3.0], [3.0]])).value == pytest.approx(1 - 1 / 5)
    assert agreement(a, -a).value == 0.0
    with pytest.raises(InputError, match="agreement"):
        agreement(a, a[:1])


def test_wilson_by_hand() -> None:
    # 8 of 10: (0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096)) / 1.38415
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(1.0, 10)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.7225, abs=1e-4)


def test_largest_difference_is_over_all_outputs() -> None:
    a = Outputs({"x": torch.zeros(2), "y": torch.ones(2, 2)})
    b = Outputs({"x": torch.tensor([0.0, 0.5]), "y": torch.full((2, 2), -1.0)})
    assert max_difference(a, b) == 2.0


def test_a_file_is_scored_over_all_batches(tmp_path: Path) -> None:
    model, graph = residual()
    export_onnx(graph, tmp_path / "m.onnx")
    x = images(7)
    with torch.no_grad():
        chosen = model(x).argmax(1)
    targets = chosen.clone()
    targets[:2] = (targets[:2] + 1) % 5
    batches = [(x[:4], targets[:4]), (x[4:], targets[4:])]
    found = score_of(tmp_path / "m.onnx", "onnxruntime", batches, accuracy, "validate")
    assert found.value == pytest.approx(5 / 7)
    assert (found.n, found.split, found.direction) == (7, "validate", "up")
    with pytest.raises(InputError, match="no labels"):
        score_of(tmp_path / "m.onnx", "onnxruntime", [(x,)], accuracy, "validate")
    with pytest.raises(InputError, match="no batch"):
        score_of(tmp_path / "m.onnx", "onnxruntime", [], accuracy, "validate")


def test_a_container_comes_back_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    a, b = torch.randn(4, 4), torch.randn(4, 3)
    export_onnx(capture(model, (a, b)), tmp_path / "m.onnx")
    found, targets = file_outputs(tmp_path / "m.onnx", "onnxruntime", [{"a": a, "b": b, "y": a}], "test")
    assert list(found) == ["total", "both"]
    torch.testing.assert_close(found["both"], model(a, b)["both"].detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(targets, a)
