"""Transformers: every linear layer is an integer kernel, and what stands between them is what runs fast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.run import runtime
from trimtab.run.export import export_onnx
from trimtab.run.integer import integer_report, require_integer
from trimtab.run.onnxruntime import optimise
from trimtab.run.overflow import support_here

WIDTH, HEADS, LENGTH = 16, 2, 6
LINEARS = ["query", "key", "value", "out", "fc1", "fc2"]


class Layer(nn.Module):
    """One layer of BERT: attention, a feed-forward network with GELU, a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.layer_norm(x, (WIDTH,))
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.fc2(nn.functional.gelu(self.fc1(x))))


class Conv1D(nn.Module):
    """GPT-2's linear layer: weights [in, out], computed as addmm."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(wide, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], len(self.bias))


class Feed(nn.Module):
    """A feed-forward network of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = Conv1D(WIDTH, 4 * WIDTH), Conv1D(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.gelu(self.wide(x), approximate="tanh"))


def sentences(n: int = 16) -> Tensor:
    return torch.randn(n, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def quantised(model: nn.Module, support: Any = None, **settings: Any) -> Graph:
    example = sentences()
    context = Context(Task(model, example[:2]), calibrate=((example,),), support=support)
    return Quantise(**settings).apply(capture(model, example[:2]), context)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Layer().eval()


@pytest.fixture(scope="module")
def int8(encoder: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer") / "int8.onnx"
    export_onnx(quantised(encoder), path)
    return path


def kernels(path: Path, folder: Path, batch: int | None = 1) -> Counter[str]:
    optimise(path, folder / "optimised.onnx", batch)
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_linear_layer_multiplies_integers(name: str, int8: Path) -> None:
    if runtime(name).available():
        pytest.skip(f"{name} is not installed")
    report = require_integer(int8, name)
    assert sorted(layer.name for layer in report) == sorted(LINEARS)
    assert all(layer.quantised and layer.precision == "int8" for layer in report)


def test_with_known_shapes_all_are_gemms_and_with_an_open_batch_products(int8: Path, tmp_path: Path) -> None:
    known, free = kernels(int8, tmp_path), kernels(int8, tmp_path, None)
    assert known["QGemm"] == free["MatMulIntegerToFloat"] == len(LINEARS)
    assert known["DequantizeLinear"] == 0  # nothing is dequantised for floating point: weights, biases or inputs
    assert known["Gemm"] == free["Gemm"] == 0


def test_what_a_norm_gives_is_quantised_once_and_added_as_it_is(int8: Path) -> None:
    model = onnx.load(int8)
    made = {name: node for node in model.graph.node for name in node.output}
    quantisers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantisers) == 4  # of query, key and value together; of out; of fc1; of fc2
    sums = [n for n in model.graph.node if n.op_type == "Sum"]
    assert len(sums) == 2
    assert not any(made[name].op_type == "DequantizeLinear" for node in sums for name in node.input)


def test_norms_stay_apart_from_the_additions_before_them(encoder: nn.Module, tmp_path: Path) -> None:
    export_onnx(capture(encoder, sentences(2)), tmp_path / "float.onnx")
    found = kernels(tmp_path / "float.onnx", tmp_path)
    assert (found["LayerNormalization"], found["SkipLayerNormalization"]) == (3, 0)


def test_ranges_found_as_it_runs(encoder: nn.Module, tmp_path: Path) -> None:
    support = support_here("onnxruntime")
    export_onnx(quantised(encoder, support, activation={"bits": 8, "dynamic": True}), tmp_path / "dynamic.onnx")
    report = integer_report(tmp_path / "dynamic.onnx", "onnxruntime")
    assert {layer.name: layer.kernel for layer in report} == {
        **dict.fromkeys(LINEARS, "DynamicQuantizeMatMul"),
        **dict.fromkeys(LINEARS[:3], "MatMulIntegerToFloat"),  # the three share what DynamicQuantizeLinear gives
    }


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_addmm_multiplies_integers(name: str, tmp_path: Path) -> None:
    if runtime(name).available():
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    export_onnx(quantised(Feed().eval()), tmp_path / "int8.onnx")
    report = require_integer(tmp_path / "int8.onnx", name)
    assert sorted(layer.name for layer in report) == ["narrow", "wide"]


def test_a_small_mlp_that_openvino_makes_one_kernel_of(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    model, example = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 4)).eval(), torch.randn(16, 8)
    export_onnx(capture(model, example[:2]), tmp_path / "float.onnx")
    context = Context(Task(model, example[:2]), calibrate=((example,),))
    export_onnx(Quantise().apply(capture(model, example[:2]), context), tmp_path / "int8.onnx")
    for file, precision in (("float.onnx", "fp32"), ("int8.onnx", "int8")):
        found = integer_report(tmp_path / file, "openvino")
        assert [(layer.name, layer.precision) for layer in found] == [("0", precision), ("2", precision)]
        # one generated kernel with VNNI; without, the integer products have kernels of their own
        assert {layer.kernel for layer in found} in ({"Subgraph"}, {"jit_gemm_I8"})
