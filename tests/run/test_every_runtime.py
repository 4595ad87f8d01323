"""Every runtime of this machine computes what torch computes, in fp32 and in integers, and says what runs where."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.run.networks import images, quantised, residual
from trimtab.core.errors import FileError, InputError, NotInteger
from trimtab.core.target import Target
from trimtab.graph.model import Graph
from trimtab.graph.save import save
from trimtab.run import KNOWN, ExecuTorch, Runtime, runtime
from trimtab.run.cpu import Cpu, _fell_back
from trimtab.run.export import INTEGER_TOLERANCE, difference, export_onnx
from trimtab.run.integer import integer_report, require_integer

SLOW = {"inductor": pytest.mark.slow}  # it compiles C++
EVERY = [pytest.param(one, id=one.name, marks=SLOW.get(one.name, ())) for one in KNOWN]


def needs(one: Runtime) -> None:
    if one.available():
        pytest.skip(str(one.available()))


def kept(graph: Graph, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    export_onnx(graph, folder / "model.onnx")
    save(graph, folder)
    return folder / "model.onnx"


def integers(support: str) -> Graph:
    return quantised(residual()[0], images(16), Cpu(support).support)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("every")


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    needs(ExecuTorch())
    return ExecuTorch().artifact(kept(integers("executorch"), folder / "made"))[0].parent


@pytest.fixture
def program(made: Path, tmp_path: Path) -> Path:
    """A quantised program of the test's own, with its graph beside."""
    return Path(shutil.copytree(made, tmp_path / "own")) / "model.pte"


def test_there_are_four() -> None:
    assert [one.name for one in KNOWN] == ["onnxruntime", "openvino", "executorch", "inductor"]


@pytest.mark.parametrize("one", EVERY)
def test_fp32_is_what_torch_computes(one: Runtime, folder: Path) -> None:
    needs(one)
    model, graph = residual()
    file, x = kept(graph, folder / "fp32"), images(3).numpy()
    with torch.no_grad():
        wanted = model(images(3)).numpy()
    threads = torch.get_num_threads()
    session = one.load(file, 3)
    assert session.inputs[0].shape == (3, 3, 12, 12)
    found = session.run([x])[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    session.run([-x])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)  # the caller's own, not overwritten
    call = session.prepared([x])
    call()
    call()
    np.testing.assert_allclose(session.run([x])[0], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="float32"):
        session.run([x.astype(np.float64)])
    session.close()
    assert torch.get_num_threads() == threads
    assert all(path.exists() for path in one.artifact(file))


@pytest.mark.parametrize("one", EVERY)
def test_quantised_layers_run_in_integers(one: Runtime, folder: Path) -> None:
    needs(one)
    graph = integers(one.name)
    file = kept(graph, folder / f"int8-{one.name}")
    report = require_integer(file, one.name)
    assert [layer.name for layer in report] == ["stem", "conv1", "conv2", "head"]
    assert {layer.precision for layer in report} == {"int8"}
    session = one.load(file, None)
    assert session.inputs[0].shape == (None, 3, 12, 12)
    with torch.no_grad():
        wanted = graph(images(5)).numpy()  # type: ignore[union-attr]
    assert difference(session.run([images(5).numpy()])[0], wanted, quantised=True) < INTEGER_TOLERANCE / 3
    session.close()


@pytest.mark.parametrize("one", EVERY)
def test_a_float_file_has_nothing_in_integers(one: Runtime, folder: Path) -> None:
    needs(one)
    report = integer_report(kept(residual()[1], folder / "fp32"), one.name)
    assert {(layer.quantised, layer.precision) for layer in report} == {(False, "fp32")}


def test_executorch_names_what_falls_back_and_keeps_its_program(program: Path) -> None:
    from trimtab.run.pte import account

    file = program.with_name("model.onnx")
    said, written = account(program), program.stat().st_mtime_ns
    assert program.name == "model.pte"
    assert said["outside"] == ["slice_copy"]  # a strided slice; everything else is XNNPACK's
    assert (said["inputs"], said["outputs"]) == (["image"], ["output"])
    assert ExecuTorch().artifact(file)[0].stat().st_mtime_ns == written
    save(residual()[1], program.parent)  # another network in its place
    assert {row["precision"] for row in account(ExecuTorch().artifact(file)[0])["layers"]} == {"fp32"}


def test_the_note_of_a_timing_names_what_falls_back(program: Path) -> None:
    file = program.with_name("model.onnx")
    clocked = Cpu("executorch").clock(file, {"own": file}, Target(runtime="executorch"), [images(1).numpy()], 0.05)
    (note,) = [note for note in clocked["own"].notes if "XNNPACK" in note]
    assert note.endswith("in portable kernels that are not tuned: slice_copy.")
    assert _fell_back(file, "onnxruntime", 1) == ()


def test_executorch_multiplies_integers_by_its_own_profile(program: Path, tmp_path: Path) -> None:
    from executorch.devtools import Inspector

    from trimtab.run import pte

    loaded = pte.program(program, etdump=True)
    loaded.load_method("forward").call([images(1)])
    loaded.write_etdump_result_to_file(str(tmp_path / "etdump"), "")
    names = [e.name for block in Inspector(etdump_path=str(tmp_path / "etdump")).event_blocks for e in block.events]
    kernels = [name for name in names if name.startswith(("Convolution", "Fully Connected"))]
    assert len(kernels) == 4
    assert all("QC8" in name for name in kernels)


def test_executorch_says_in_one_line_what_it_cannot_make(folder: Path) -> None:
    """A linear layer with a floating-point result, as ONNX Runtime likes it, is not XNNPACK's."""
    needs(ExecuTorch())
    file = kept(quantised(residual()[0], images(16)), folder / "foreign")
    with pytest.raises(NotInteger, match="head"):
        require_integer(file, "executorch")


@pytest.mark.parametrize("keep", [0, 10, 600, 9000])
def test_a_damaged_program_is_one_line(keep: int, program: Path) -> None:
    program.write_bytes(program.read_bytes()[:keep])
    program.with_name("model.trim.json").unlink()  # it stands alone: nothing to make it again from
    with pytest.raises(FileError) as caught:
        ExecuTorch().load(program.with_name("model.onnx"), 1)
    assert "\n" not in str(caught.value)


def test_executorch_has_one_thread_pool(folder: Path) -> None:
    needs(ExecuTorch())
    file = kept(residual()[1], folder / "fp32")
    first = ExecuTorch().load(file, 1, threads=1)
    with pytest.raises(InputError, match="one thread pool"):
        ExecuTorch().load(file, 1, threads=2)
    first.close()
    two = ExecuTorch().load(file, 1, threads=2)
    two.run([images(1).numpy()])
    two.close()


def test_the_graph_must_stand_beside(tmp_path: Path) -> None:
    export_onnx(residual()[1], tmp_path / "model.onnx")
    for name in ("executorch", "inductor"):
        needs(runtime(name))
        with pytest.raises(FileError, match=r"model\.trim\.json"):
            runtime(name).load(tmp_path / "model.onnx", 1)
        with pytest.raises(FileError, match="none"):
            runtime(name).load(tmp_path / "none.onnx", 1)
