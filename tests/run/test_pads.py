"""Zeros before a maximum pool survive ONNX Runtime's fusion of the two."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from trimtab.graph.capture import capture
from trimtab.run.export import export_onnx


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_padded_pool_of_negative_values(tmp_path, value):
    model = nn.Sequential(nn.ConstantPad2d(1, value), nn.MaxPool2d(3, 2))
    export_onnx(capture(model, torch.randn(2, 3, 8, 8)), tmp_path / "model.onnx")
    x = -1 - torch.rand(2, 3, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).numpy(), rtol=0, atol=1e-30)
    assert found.max() == pytest.approx(value, abs=1e-30)
