"""Cuda: what it says without a GPU; with one, that it computes what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.run.networks import images, residual
from trimtab.core.errors import NotInteger, RuntimeMissing
from trimtab.core.target import Target, parse
from trimtab.graph.save import save
from trimtab.hardware.layer import Layer
from trimtab.pipeline.devices import device_of
from trimtab.run.cuda import Cuda
from trimtab.run.export import export_onnx

LAYER = Layer(8, 16, (3, 3), (12, 12), (1, 1), (1, 1), (1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    assert "CUDA" in str(Cuda().available())
    with pytest.raises(RuntimeMissing, match="CUDA") as caught:
        device_of(parse("cuda"))
    assert "\n" not in str(caught.value)


def test_quantised_layers_need_tensorrt() -> None:
    with pytest.raises(NotInteger, match="floating point"):
        Cuda().check(Path("model.onnx"), "torch-fp16")
    Cuda().check(Path("model.onnx"), "tensorrt")


@pytest.mark.gpu
def test_it_times_a_network_and_computes_what_torch_computes(tmp_path: Path) -> None:
    if why := Cuda().available():
        pytest.skip(why)
    from trimtab.run.cuda_session import CudaSession

    model, graph = residual()
    save(graph, tmp_path)
    export_onnx(graph, tmp_path / "model.onnx")
    x = images(2).numpy()
    with torch.no_grad():
        wanted = model(images(2)).numpy()
    for kind, bound in (("fp32", 1e-3), ("fp16", 1e-2), ("bf16", 1e-1)):
        found = CudaSession(tmp_path / "model.onnx", 2, kind).run([x])[0]
        assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()
    target = Target("cuda", batch=2)
    clocked = Cuda().clock(tmp_path / "model.onnx", {"m": tmp_path / "model.onnx"}, target, [x], 0.5)["m"]
    assert {"latency", "latency_ratio", "throughput"} <= set(clocked.metrics)
    assert all(m.source == "measured" and m.value > 0 for m in clocked.metrics.values())
    assert Cuda().layers([LAYER], "fp32", target)[LAYER]["latency"] > 0
