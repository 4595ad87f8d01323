"""Ethos-U as a device: lowered by ExecuTorch, modelled by Vela, its numbers by Arm's reference model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.run.ethos.networks import quantised
from tests.run.networks import images, residual
from trimtab.core.errors import ExportError, InputError, NotRunnable, RuntimeMissing
from trimtab.core.target import Target
from trimtab.graph.save import load, save
from trimtab.hardware.layer import Layer
from trimtab.pipeline.devices import device_of
from trimtab.run.device import MODEL
from trimtab.run.ethos import device as module
from trimtab.run.ethos import lower
from trimtab.run.ethos.configuration import read
from trimtab.run.ethos.device import EthosU, _of
from trimtab.run.ethos.numbers import outputs
from trimtab.run.ethos.vela import compiled
from trimtab.run.export import export_onnx
from trimtab.run.fusable import ETHOS_U
from trimtab.run.overflow import faithful

pytest.importorskip("executorch")
pytest.importorskip("ethosu.vela")
pytest.importorskip("tosa_serializer")

TARGET = Target("ethos-u55-128")


def pointed(graph, folder: Path) -> Path:
    folder.mkdir()
    save(graph, folder)
    export_onnx(graph, folder / MODEL)
    return folder / MODEL


class Soft(nn.Module):
    """A softmax between two convolutions, and a transposed one behind: both fall back, and part the network in two."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)

    def forward(self, x):
        return self.up(self.last(torch.softmax(self.first(x), 1)))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return pointed(quantised(residual()[0], images(16)), tmp_path_factory.mktemp("points") / "int8")


@pytest.fixture(scope="module")
def clocked(file):
    return EthosU(read("ethos-u55-128")).clock(file, {"own": file}, TARGET, [])["own"]


def test_all_of_it_runs_there(file, clocked):
    assert _of(file, read("ethos-u55-128")).fallen == ()
    assert not [note for note in clocked.notes if "Fell back" in note]
    assert clocked.runtime == "vela"
    metrics = clocked.metrics
    cycles = sum(row["cycles"] for row in clocked.layers)
    assert metrics["latency"].value == pytest.approx(cycles / 500e6)  # High_End_Embedded runs at 500 MHz
    assert metrics["latency_ratio"].value == 1
    assert 12 * 12 * 8 <= metrics["peak_memory"].value < 8192
    assert {m.source for m in metrics.values()} == {"modelled"}


def test_layers_carry_the_users_names_and_their_multiply_adds(clocked):
    rows = {row["name"]: row for row in clocked.layers}
    assert rows["stem"]["macs"] == 3 * 8 * 9 * 144
    assert rows["conv1"]["macs"] == 8 * 16 * 9 * 36
    assert rows["conv2"]["macs"] == 16 * 16 * 9 * 36
    assert rows["head"]["macs"] == 16 * 5
    # no layer is faster than its multiply-adds at 128 a cycle
    assert all(row["cycles"] >= row["macs"] / 128 for row in clocked.layers)


def test_what_it_computes_is_what_the_onnx_file_computes(file):
    device = EthosU(read("ethos-u55-128"))
    graph, x = load(file.parent), images(8).numpy()
    found = outputs(graph, _of(file, device.configuration).parts[0].network, x)
    session = faithful(file, "onnxruntime", 8)
    expected = session.run([x])[0]
    step = next(iter(graph.net.graph.output_node().all_input_nodes)).args[1]
    quanta = abs(found - expected) / step
    assert quanta.max() < 2.01  # an average in the middle of two levels goes either way
    assert (quanta < 0.01).mean() > 0.75
    device.check(file, "vela")


def test_other_numbers_are_refused(file, tmp_path):
    other = pointed(quantised(residual()[0], 3 * images(16)), tmp_path / "other")
    (tmp_path / "other" / MODEL).write_bytes(file.read_bytes())
    weights = load(other.parent)
    weights.tensors()["head.weight"].neg_()
    save(weights, other.parent)
    with pytest.raises(ExportError, match="computes something else"):
        EthosU(read("ethos-u55-128")).check(other, "vela")


def test_larger_processors_are_faster(file):
    network = _of(file, read("ethos-u55-128")).parts[0].network
    small, large = (compiled(network, "tosa", read(f"ethos-u55-{macs}")).cycles for macs in (32, 256))
    assert large < 0.6 * small


def test_the_program_is_written_once_and_anew_for_another_network(file, tmp_path):
    device = EthosU(read("ethos-u55-128"))
    (program,) = device.artifact(file)
    assert program == file.parent / "model.pte"
    assert program.read_bytes()[4:8] == b"ET12"
    before = program.stat().st_mtime_ns
    assert device.artifact(file) == (program,)
    assert program.stat().st_mtime_ns == before
    program.write_bytes(b"something else")
    assert device.artifact(file)[0].read_bytes()[4:8] == b"ET12"


def test_what_falls_back_is_named(tmp_path):
    torch.manual_seed(0)
    graph = quantised(Soft().eval(), images(8))
    file = pointed(graph, tmp_path / "soft")
    found = EthosU(read("ethos-u55-128")).clock(file, {"own": file}, TARGET, [])["own"]
    (note,) = [note for note in found.notes if "Fell back" in note]
    assert "softmax" in note
    assert "convolution (up)" in note
    rows = {row["name"]: row for row in found.layers}
    assert set(rows) >= {"first", "last"}
    assert rows["up"] == {"name": "up", "kind": "convolution", "runs_on": "the processor beside"}
    assert rows["first"]["cycles"] > 0


def test_nothing_runs_there(file, monkeypatch):
    # a backend that takes no operator
    monkeypatch.setattr(lower, "_KNOWN", frozenset())
    with pytest.raises(NotRunnable, match=r"nothing of it runs there.*convolution \(stem\)"):
        lower.lowered(load(file.parent), read("ethos-u55-128"))


def test_too_large_for_the_memory(file, monkeypatch):
    device = EthosU(read("ethos-u55-128"))
    monkeypatch.setattr(module, "compiled", lambda *a, **k: replace(compiled(*a, **k), limit=1000))
    other = file.with_name("other.onnx")
    other.write_bytes(file.read_bytes())
    for suffix in (".trim.json", ".safetensors"):
        other.with_name(f"other{suffix}").write_bytes(file.with_name(f"model{suffix}").read_bytes())
    found = device.clock(file, {"original": file}, TARGET, [])["original"]
    assert "too large" in found.lacks  # what ratios count from is modelled all the same
    share = round(100 * 1000 / found.metrics["peak_memory"].value)
    told = rf"too large for its SRAM.*conv1.*at most 1 kB. {share} % of that would fit: fewer channels there"
    with pytest.raises(NotRunnable, match=told):
        device.clock(file, {"other": other}, TARGET, [])


def test_layers_alone():
    device = EthosU(read("ethos-u55-128"))
    plain = Layer(16, 16, (3, 3), (32, 32), (1, 1), (1, 1), (1, 1))
    strided = Layer(16, 32, (3, 3), (32, 32), (2, 2), (1, 1), (1, 1))
    grouped = Layer(16, 16, (3, 3), (32, 32), (1, 1), (1, 1), (1, 1), 2)
    depthwise = Layer(16, 16, (3, 3), (32, 32), (1, 1), (1, 1), (1, 1), 16)
    line = Layer(40, 64, (5,), (100,), (1,), (2,), (1,))
    linear = Layer(64, 10, spatial=(1,))
    found = device.layers([plain, strided, grouped, depthwise, line, linear], "int8", TARGET)
    cycles = {layer: costs["latency"] * 500e6 for layer, costs in found.items()}
    # the layer of ResNet-8 of this shape takes 25,715 cycles in the midst of others
    assert cycles[plain] == pytest.approx(25715, rel=0.15)
    assert cycles[strided] >= strided.macs / 128
    assert cycles[linear] < 2000
    assert cycles[grouped] > 2 * (grouped.macs / 2) / 128
    assert all(value > 0 for value in cycles.values())


def test_layers_that_it_has_not():
    device = EthosU(read("ethos-u55-128"))
    cube = Layer(4, 4, (3, 3, 3), (8, 8, 8), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    with pytest.raises(NotRunnable, match="three dimensions"):
        device.layers([cube], "int8", TARGET)
    with pytest.raises(InputError, match="batch"):
        device.layers([Layer(4, 4, spatial=(1,))], "int8", Target("ethos-u55-128", batch=2))


def test_a_target_names_it():
    found = device_of(Target("ethos-u55-128-sram_only"))
    assert found == EthosU(read("ethos-u55-128-sram_only"))
    assert (found.precisions, found.source, found.support) == (("int8",), "modelled", ETHOS_U)
    with pytest.raises(InputError, match="memory mode"):
        device_of(Target("ethos-u55-128-fast"))


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(module, "_version", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"executorch, ethos-u-vela.*trimtab\[npu\]"):
        device_of(TARGET)
