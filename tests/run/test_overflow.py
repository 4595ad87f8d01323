"""Weights whose products the kernels of this processor can add: the runtimes give what the graph gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.run.networks import quantised
from trimtab.compress import Quantise
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.save import save
from trimtab.hardware.machine import machine
from trimtab.run import KNOWN, runtime, runtimes
from trimtab.run.clean import clean_outputs
from trimtab.run.cpu import Cpu
from trimtab.run.export import export_onnx
from trimtab.run.fusable import ETHOS_U, INTEGER
from trimtab.run.overflow import SIXTEEN, clipped, overflows, support_here, support_of_flags
from trimtab.run.score import file_outputs


class Loud(nn.Module):
    """A convolution and a linear layer whose sums are the greatest that 8 bits give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 16, 3, 1, 1)
        self.linear = nn.Linear(16, 4)
        with torch.no_grad():
            self.conv.weight.copy_(0.9 + 0.1 * torch.rand(16, 32, 3, 3))
            self.linear.weight.copy_(0.9 + 0.1 * torch.rand(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def loud() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Loud().eval(), 0.8 + 0.2 * torch.rand(8, 32, 6, 6)


def test_the_highest_level_keeps_every_pair_of_products() -> None:
    """2 x 255 x 64 = 32,640 is within 16 bits; 2 x 255 x 65 = 33,150 is not."""
    assert INTEGER.top == 127
    assert replace(INTEGER, pairs=SIXTEEN).top == 64
    assert 2 * 255 * 64 <= SIXTEEN < 2 * 255 * 65


@pytest.mark.parametrize(
    "name",
    [pytest.param(r.name, marks=[pytest.mark.slow] if r.name == "inductor" else []) for r in KNOWN],
)
def test_a_runtime_gives_the_sums_of_the_graph(name: str, tmp_path: Path) -> None:
    if runtime(name).available():
        pytest.skip(str(runtime(name).available()))
    model, images = loud()
    graph = quantised(model, images, Cpu(name).support)
    export_onnx(graph, tmp_path / "model.onnx")
    save(graph, tmp_path)
    (found,) = runtime(name).load(tmp_path / "model.onnx", 8).run([images.numpy()])
    expected = graph(images).detach().numpy()
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("name", [r.name for r in runtimes()])
def test_the_probe_tells_what_a_network_of_all_levels_meets(name: str, tmp_path: Path) -> None:
    model, images = loud()
    graph = quantised(model, images, replace(INTEGER, pairs=None))
    export_onnx(graph, tmp_path / "model.onnx")
    (found,) = runtime(name).load(tmp_path / "model.onnx", 8).run([images.numpy()])
    expected = graph(images).detach().numpy()
    wrong = bool(np.abs(found - expected).max() > 0.02 * np.abs(expected).max())
    assert wrong == overflows(name)


def test_what_another_device_runs_is_scored_as_its_file_says(tmp_path: Path) -> None:
    """A network of all levels, as an NPU has them: no kernel of this processor changes its outputs here."""
    model, images = loud()
    graph = quantised(model, images, ETHOS_U)
    export_onnx(graph, tmp_path / "model.onnx")
    found, _ = file_outputs(tmp_path / "model.onnx", "onnxruntime", [images], "test")
    clean = clean_outputs(tmp_path / "model.onnx", "onnxruntime", [images])
    expected = graph(images).detach()
    for each in (found, clean):
        assert float((each - expected).abs().max()) <= 0.02 * float(expected.abs().max())


def test_only_levels_beyond_the_highest_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = loud()
    for name, support in (("wide", INTEGER), ("narrow", replace(INTEGER, pairs=SIXTEEN))):
        export_onnx(quantised(model, images, support), tmp_path / f"{name}.onnx")
    context = Context(Task(model, images[:2]), support=INTEGER)
    alone = Quantise(activation=None).apply(capture(model, images[:2]), context)
    export_onnx(alone, tmp_path / "weights.onnx")
    monkeypatch.setattr("trimtab.run.overflow.support_here", lambda name: replace(INTEGER, pairs=SIXTEEN))
    assert clipped(tmp_path / "wide.onnx", "onnxruntime")
    assert not clipped(tmp_path / "narrow.onnx", "onnxruntime")
    assert not clipped(tmp_path / "weights.onnx", "onnxruntime")
    monkeypatch.setattr("trimtab.run.overflow.support_here", lambda name: INTEGER)
    assert not clipped(tmp_path / "wide.onnx", "onnxruntime")


@pytest.mark.parametrize("bits", [8, 4])
def test_levels_and_what_is_said_of_them(bits: int) -> None:
    model, images = loud()
    context = Context(Task(model, images[:2]), calibrate=((images,),), support=replace(INTEGER, pairs=SIXTEEN))
    made = Quantise(weight={"bits": bits}).apply(capture(model, images[:2]), context)
    highest = max(int(t.abs().max()) for t in made.tensors().values() if t.dtype == torch.int8)
    assert highest == (64 if bits == 8 else 7)
    assert any("levels -64 to 64" in note for note in made.notes) == (bits == 8)


def test_weights_alone_have_all_levels() -> None:
    model, images = loud()
    context = Context(Task(model, images[:2]), support=replace(INTEGER, pairs=SIXTEEN))
    made = Quantise(activation=None).apply(capture(model, images[:2]), context)
    assert max(int(t.abs().max()) for t in made.tensors().values() if t.dtype == torch.int8) == 127


def test_a_target_without_a_runtime_keeps_to_what_all_of_them_hold() -> None:
    several = any(overflows(r.name) for r in runtimes())
    assert (support_here(None).pairs is not None) == several
    assert support_here(None) is support_here(None)
    assert support_here("executorch").pairs is None


@pytest.mark.parametrize(
    ("runtime", "flags", "adds_in_16_bits"),
    [
        (None, ("avx2", "fma"), True),
        ("openvino", ("avx2", "avx512f"), True),
        ("onnxruntime", ("avx2", "avx512f", "avx512_vnni"), False),
        ("onnxruntime", ("avx2", "avx_vnni"), False),
        ("onnxruntime", ("asimd", "asimddp"), False),
        ("executorch", ("avx2",), False),
    ],
)
def test_another_machine_is_judged_by_its_instructions(runtime, flags, adds_in_16_bits) -> None:
    assert (support_of_flags(runtime, flags).pairs == SIXTEEN) == adds_in_16_bits


def test_the_instructions_of_this_machine_say_what_the_probe_says() -> None:
    names, here = [r.name for r in runtimes()], machine().flags
    assert [support_of_flags(name, here).pairs for name in names] == [support_here(name).pairs for name in names]
