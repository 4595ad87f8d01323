"""Runtimes: both compute what torch computes, and say in one line what is wrong with a file or an input."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.run.networks import images, residual
from trimtab.core.errors import FileError, InputError, RuntimeMissing
from trimtab.run import OnnxRuntime, OpenVino, Runtime, runtime, runtimes
from trimtab.run.export import export_onnx

BOTH = [OnnxRuntime(), OpenVino()]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "m.onnx"
    export_onnx(residual()[1], path)
    return path


def needs(one: Runtime) -> None:
    if one.available():
        pytest.skip(str(one.available()))


@pytest.mark.parametrize("one", BOTH, ids=lambda r: r.name)
def test_it_computes_what_torch_computes(one: Runtime, file: Path) -> None:
    needs(one)
    with torch.no_grad():
        wanted = residual()[0](images(3)).numpy()
    x = images(3).numpy()
    for batch in (None, 3):
        session = one.load(file, batch, threads=1)
        assert session.inputs[0].shape == (batch, 3, 12, 12)
        found = session.run([x])[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        session.run([-x])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)  # the caller's own, not overwritten
        call = session.prepared([x])
        call()
        call()
        session.close()


@pytest.mark.parametrize("one", BOTH, ids=lambda r: r.name)
def test_inputs_that_do_not_fit_are_refused(one: Runtime, file: Path) -> None:
    needs(one)
    session = one.load(file, 1)
    with pytest.raises(InputError, match="float32"):
        session.run([images(1).double().numpy()])
    with pytest.raises(InputError, match=r"\[1, 3, 12, 12\]"):
        session.run([images(2).numpy()])
    with pytest.raises(InputError, match="2 inputs"):
        session.run([images(1).numpy()] * 2)


@pytest.mark.parametrize("one", BOTH, ids=lambda r: r.name)
@pytest.mark.parametrize("keep", [0, 10, 600], ids=lambda n: f"{n} bytes")
def test_a_damaged_file_is_one_line(one: Runtime, keep: int, file: Path, tmp_path: Path) -> None:
    needs(one)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FileError) as caught:
        one.load(bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match="No such file"):
        one.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("one", BOTH, ids=lambda r: r.name)
def test_an_inconsistent_file_is_one_line(one: Runtime, file: Path, tmp_path: Path) -> None:
    needs(one)
    model = onnx.load(file)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(FileError) as caught:
        one.load(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", ""])
def test_external_data_outside_the_folder_is_refused(location: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    for one in BOTH:
        if not one.available():
            with pytest.raises(FileError, match="external data outside"):
                one.load(folder / "m.onnx")


def test_a_missing_runtime_names_its_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"trimtab\[openvino\]"):
        OpenVino().load(file)
    assert runtimes() == ()


def test_runtimes_by_name() -> None:
    assert runtime(None).name == "onnxruntime"
    assert runtime("openvino").name == "openvino"
    with pytest.raises(InputError, match="onnxruntime, openvino"):
        runtime("tensorrt")
