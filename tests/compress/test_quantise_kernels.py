"""Quantise on the runtimes: accuracy of a trained network, and every quantised layer in an integer kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.compress.networks import Inception, Residual
from tests.compress.test_quantise import captured
from trimtab.compress import Quantise
from trimtab.compress.quantise.insert import FAKE, tensors_of
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.run.export import export_onnx


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


DATA = Path(os.environ.get("TRIMTAB_DATA", Path(__file__).parents[3] / "shared" / "data"))


class CifarBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if inputs != outputs else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class CifarResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(CifarBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(CifarBlock(16, 32, 2), CifarBlock(32, 32, 1), CifarBlock(32, 32, 1))
        self.layer3 = nn.Sequential(CifarBlock(32, 64, 2), CifarBlock(64, 64, 1), CifarBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@pytest.mark.data
@pytest.mark.slow
@torch.no_grad()
def test_resnet20_on_cifar10_keeps_its_accuracy_and_runs_in_integers(tmp_path: Path) -> None:
    if not (DATA / "resnet20_cifar10_jpeg.safetensors").exists():
        pytest.skip("no data folder: set TRIMTAB_DATA")
    import io

    import numpy as np
    import onnx
    import onnxruntime
    from PIL import Image
    from safetensors.torch import load_file

    data = np.load(DATA / "cifar10_test_jpeg.npz")
    index, offset = range(0, 10_000, 10), data["offset"]
    images = [
        np.asarray(Image.open(io.BytesIO(data["jpeg"][offset[i] : offset[i + 1]].tobytes()))).copy() for i in index
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).reshape(
        3, 1, 1
    )
    y = torch.from_numpy(data["y"][list(index)].astype("int64"))
    model = CifarResNet20().eval()
    model.load_state_dict(load_file(DATA / "resnet20_cifar10_jpeg.safetensors"), strict=False)
    graph = capture(model, x[:2])
    calibrate = tuple((part,) for part in x[::4].split(50))
    quantised = Quantise().apply(graph, Context(Task(model, x[:2]), calibrate=calibrate))
    wanted = torch.cat([graph(part) for part in x.split(250)])  # type: ignore[misc]
    found = torch.cat([quantised(part) for part in x.split(250)])  # type: ignore[misc]
    assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) > 0.97
    drop = float((wanted.argmax(1) == y).float().mean() - (found.argmax(1) == y).float().mean())
    assert drop < 0.01
    export_onnx(quantised, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "seen.onnx"), 4
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node]
    assert kinds.count("QLinearConv") == 19
    assert kinds.count("QLinearAdd") == 9
    assert kinds.count("QGemm") == 1
    assert "Conv" not in kinds
    assert next(quantised.nodes(FAKE), None) is None


class Mixed(nn.Module):
    """A convolution and linear layers of equal width: their zero points are equal, but must not be one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.second(torch.relu(self.first(x.flatten(2).transpose(1, 2))))


class Skip(nn.Module):
    """A decoder's skip: what a relu gave beside what a transposed convolution gave, which is signed."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.join = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.down(x))
        y = self.up(torch.relu(self.inner(nn.functional.max_pool2d(x, 2))))
        return self.join(torch.cat([x, y], 1))


def test_a_relu_keeps_zero_point_zero_beside_a_signed_tensor() -> None:
    graph, context = captured(Skip())
    prepared = Quantise().prepare(graph, context)
    tensors = prepared.tensors()
    points = {fake.source.name: float(tensors[str(fake.zero)]) for fake in tensors_of(prepared)}
    assert points["relu"] == points["relu_1"] == 0
    assert points["cat"] != 0
    assert any("up in floating point: the runtime has no integer conv_transpose2d" in n for n in prepared.notes)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_quantised_layer_runs_in_integers(name: str, tmp_path: Path) -> None:
    from trimtab.run import runtime
    from trimtab.run.integer import require_integer

    if runtime(name).available():
        pytest.skip(str(runtime(name).available()))
    for model in (Mixed(), Inception(), Residual(), Skip()):
        graph, context = captured(model)
        export_onnx(Quantise().apply(graph, context), tmp_path / "model.onnx")
        left = [layer.name for layer in require_integer(tmp_path / "model.onnx", name) if not layer.quantised]
        assert left == (["up"] if isinstance(model, Skip) else [])
