"""Low bits end to end: what `Quantise` makes of a network, as a file that is small, agrees, and runs in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from torch import Tensor, nn

from tests.run.networks import images, residual
from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.errors import NotRunnable
from trimtab.core.task import Task
from trimtab.graph.bits import packed_bytes
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.run import OnnxRuntime, runtime
from trimtab.run.export import export_onnx
from trimtab.run.integer import integer_report, require_integer, smaller
from trimtab.run.lacks import refuse_few_bits
from trimtab.run.layers import layers
from trimtab.run.onnxruntime import optimise
from trimtab.run.plain import plain


class Words(nn.Module):
    """Linear layers on [N, features] and on [N, T, features], and a convolution along the words."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(64, 128)
        self.wide = nn.Linear(128, 96)
        self.along = nn.Conv1d(96, 96, 3, 1, 1)
        self.first = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        words = torch.relu(self.wide(torch.relu(self.flat(x))))  # [N, T, 96]
        return self.along(words.transpose(1, 2)), self.first(x[:, 0])


def made(model: nn.Module, example: Tensor, **how: Any) -> Graph:
    context = Context(Task(model, example[:2]), calibrate=((example,),))
    return Quantise(**how).apply(capture(model, example[:2]), context)


def kernels(path: Path, folder: Path) -> Counter[str]:
    optimise(path, folder / "optimised.onnx")
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def held(path: Path) -> Mapping[str, Any]:
    return {t.name: t for t in onnx.load(path).graph.initializer}


def words(n: int = 8) -> Tensor:
    return torch.randn(n, 5, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def sentences() -> nn.Module:
    torch.manual_seed(0)
    return Words().eval()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, Path]:
    """Weights and activations of 4 bits."""
    path = tmp_path_factory.mktemp("four") / "model.onnx"
    graph = made(residual()[0], images(16), weight={"bits": 4, "per": "channel"}, activation={"bits": 4})
    export_onnx(graph, path)
    return graph, path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_four_bits_on_both_sides_run_in_integers(name: str, four: tuple[Graph, Path]) -> None:
    if runtime(name).available():
        pytest.skip(f"{name} is not installed")
    report = require_integer(four[1], name)
    assert [layer.name for layer in report if layer.meant] == ["stem", "conv1", "conv2", "head"]
    assert {layer.precision for layer in report} == {"int8"}
    assert smaller(report, name) == ()


def test_four_bits_are_half_a_byte_each(four: tuple[Graph, Path]) -> None:
    graph, path = four
    found = held(path)
    for name in ("stem.weight", "conv1.weight", "conv2.weight"):
        assert found[name].data_type == TensorProto.INT4
        assert len(found[name].raw_data) == packed_bytes(graph.tensors()[name].numel(), 4)
    again = {t.name: t for t in plain(onnx.load(path)).graph.initializer}
    for name in ("stem.weight", "conv1.weight", "conv2.weight"):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(again[name]), graph.tensors()[name].numpy())
    assert [layer.name for layer in layers(plain(onnx.load(path)))] == ["stem", "conv1", "conv2", "head"]


def test_four_bit_activations_clamp_as_torch_does(four: tuple[Graph, Path]) -> None:
    graph, path = four
    x = 10 * images(7)  # far outside of what was calibrated
    with torch.no_grad():
        expected = graph(x)
    assert isinstance(expected, Tensor)
    found = OnnxRuntime().load(path).run([x.numpy()])[0]
    gap = np.abs(found - expected.numpy())
    assert np.sqrt(np.mean(gap**2)) < 0.05 * expected.std()


def test_groups_of_four_bits_are_one_product(sentences: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = made(sentences, words(), weight={"bits": 4, "group": 32}, activation=None, skip=("along",))
    export_onnx(graph, path)
    assert kernels(path, tmp_path)["MatMulNBits"] == 3
    report = integer_report(path, "onnxruntime")
    assert {layer.name: layer.kernel for layer in report if layer.quantised} == {
        "flat": "MatMulNBits",
        "wide": "MatMulNBits",
        "first": "MatMulNBits",
    }
    require_integer(path, "onnxruntime")  # nothing here is meant to multiply integers
    assert TensorProto.INT8 not in {t.data_type for t in held(path).values()}  # zero points of 0 are left out
    weights = [t for t in held(path).values() if t.data_type == TensorProto.INT4]
    assert sorted(len(t.raw_data) for t in weights) == [64 * 64 // 2, 64 * 128 // 2, 96 * 128 // 2]
    count = 64 * 64 + 64 * 128 + 96 * 128
    assert 4 * count / (sum(len(t.raw_data) for t in weights) + 4 * count // 32) > 6.3
    with torch.no_grad():
        expected = [value.numpy() for value in graph(words(3)).values()]  # type: ignore[union-attr]
    for found, wanted in zip(OnnxRuntime().load(path).run([words(3).numpy()]), expected, strict=True):
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_weights_alone_say_that_they_are_smaller_and_not_faster(sentences: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = made(sentences, words(), weight={"bits": 8, "per": "channel"}, activation=None)
    export_onnx(graph, path)
    found = kernels(path, tmp_path)
    assert found["MatMulNBits"] == 3
    assert found["DequantizeLinear"] == 0  # nothing is widened at every inference
    report = require_integer(path, "onnxruntime")
    assert not any(layer.meant for layer in report)
    if any(layer.name == "along" and layer.quantised for layer in report):
        (said,) = smaller(report, "onnxruntime")
        assert said == "Smaller, not faster: onnxruntime computes in floating point what is stored in integers: along."


@pytest.mark.parametrize(("kind", "bytes_each"), [("fp16", 2), ("bf16", 2), ("fp8", 1)])
def test_narrow_floats_are_stored_narrow_and_computed_wide(
    kind: str, bytes_each: int, sentences: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    graph = made(sentences, words(), weight={"kind": kind}, activation=None)
    export_onnx(graph, path)
    weights = {name: t for name, t in held(path).items() if name.endswith("weight")}
    assert sorted(weights) == ["along.weight", "first.weight", "flat.weight", "wide.weight"]
    for name, tensor in weights.items():
        # of the few values that fp8 has near zero, indices of fewer bits may be smaller still
        most = bytes_each * graph.tensors()[name].numel()
        assert len(tensor.raw_data) <= most if kind == "fp8" else len(tensor.raw_data) == most
    assert "Cast" not in kernels(path, tmp_path)
    report = require_integer(path, "onnxruntime")
    said = smaller(report, "onnxruntime")
    assert f"stored in {kind}: flat" in said[0]
    assert sorted(name for line in said for name in line[:-1].rpartition(": ")[2].split(", ")) == [
        *("along", "first", "flat", "wide")
    ]
    assert len(said) == 1 or kind == "fp8"


def branch(kinds: str, width: int, kernel: int) -> nn.Module:
    """A few operators on [N, 3, 8, 8]."""
    parts: list[nn.Module] = []
    channels = 3
    for kind in kinds:
        if kind == "c":
            parts += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            channels = width
        elif kind == "d":
            parts += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.ReLU6()]
        elif kind == "p":
            parts.append(nn.MaxPool2d(2, 1))
    return nn.Sequential(*parts, nn.Conv2d(channels, 4, 1), nn.ReLU())


class Branches(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


BRANCH = st.tuples(st.sampled_from(["c", "cc", "cd", "cpc", "cdc"]), st.integers(3, 17), st.sampled_from([1, 3]))
SCHEME = st.fixed_dictionaries({"bits": st.integers(4, 8), "per": st.sampled_from(["channel", "tensor"])})
# With fewer bits the runtime's 32-bit biases, in steps of input times weight, are off by more than a quantum.


@pytest.mark.slow
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_networks_agree_to_one_quantum(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    chosen = data.draw(st.lists(BRANCH, min_size=4, max_size=4))
    schemes = {f"parts.{i}.*": data.draw(SCHEME) for i in range(4)}
    bits = data.draw(st.integers(4, 8))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = Branches([branch(*each) for each in chosen]).eval()
    example = torch.randn(16, 3, 8, 8)
    graph = made(model, example, layers=schemes, activation={"bits": bits})
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    export_onnx(graph, path)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = [value.numpy() for value in graph.net(x)]
    ends = [node.args[0] for node in graph.net.graph.output_node().args[0]]
    for found, wanted, end in zip(OnnxRuntime().load(path).run([x.numpy()]), expected, ends, strict=True):
        step = np.diff(np.unique(wanted)).min() if len(np.unique(wanted)) > 1 else 1.0
        assert end is not None
        assert np.abs(found - wanted).max() <= step * 1.01


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ({"activation": {"bits": 4}}, "activations of fewer than 8 bits: relu: got 16 levels"),
        (
            {"weight": {"bits": 4, "group": 16}, "activation": None},
            "a scale for each group: head.weight: got groups of 16",
        ),
    ],
)
def test_a_runtime_without_a_form_says_what_it_has(how: dict[str, Any], got: str) -> None:
    graph = made(residual()[0], images(16), **how)
    with pytest.raises(NotRunnable) as caught:
        refuse_few_bits(graph, "executorch")
    assert str(caught.value).startswith("executorch has no kernel for ")
    assert got in str(caught.value)
    assert "expected 8-bit activations of calibrated range" in str(caught.value)
    assert refuse_few_bits(made(residual()[0], images(16), weight={"bits": 4}), "executorch") is None
