"""A coded file beside a point's ONNX file: kept where it is smaller, and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trimtab.cli import status
from trimtab.pipeline.coded import coded
from trimtab.run.pack import pack
from trimtab.run.trim_file import CODED


def written(value: np.ndarray[Any, Any], file: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", value.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(pack(model), file)
    return file


def skewed() -> np.ndarray[Any, Any]:
    shares = [0.6, 0.2, 0.1, 0.05, 0.05]
    return np.array([0, 1, -1, 2.5, -2], np.float32)[np.random.default_rng(0).choice(5, size=(128, 128), p=shares)]


def test_what_a_point_takes_on_disk_in_memory_and_in_time(tmp_path: Path) -> None:
    file = written(skewed(), tmp_path / "model.onnx")
    found, told = coded(tmp_path)
    assert told == ()
    assert found["coded_size"].value == (tmp_path / CODED).stat().st_size < 0.9 * file.stat().st_size
    assert found["decoded_size"].value > 128 * 128 * 4
    assert found["decode_time"].value > 0
    assert {name: m.unit for name, m in found.items()} == {
        "coded_size": "byte", "decoded_size": "byte", "decode_time": "s",
    }  # fmt: skip
    assert coded(tmp_path)[0]["coded_size"] == found["coded_size"]  # once written, it is only measured


def test_one_that_saves_little_is_not_kept(tmp_path: Path) -> None:
    written(np.frombuffer(np.random.default_rng(0).bytes(1 << 14), np.float16).astype(np.float32).reshape(64, -1),
            tmp_path / "model.onnx")  # fmt: skip
    assert coded(tmp_path) == ({}, ())
    assert not (tmp_path / CODED).exists()


def test_one_that_cannot_be_coded_is_a_sentence_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(skewed(), tmp_path / "model.onnx")
    monkeypatch.setattr("trimtab.run.unpacked._MOST", 100)
    metrics, told = coded(tmp_path)
    assert metrics == {}
    assert len(told) == 1
    assert told[0].startswith("model.onnx was not entropy-coded: read ONNX: constants")
    assert not (tmp_path / CODED).exists()
    monkeypatch.undo()
    monkeypatch.setattr("trimtab.pipeline.coded.write_trim", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        coded(tmp_path)


def test_encode_and_decode_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(skewed(), tmp_path / "model.onnx")
    assert status(["encode", "model.onnx"]) == 0
    assert "model.trim" in capsys.readouterr().out
    assert status(["decode", "model.trim", "--out", "again.onnx", "--json"]) == 0
    assert '"file": "again.onnx"' in capsys.readouterr().out
    weight = onnx.load("again.onnx").graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(weight), skewed())
    Path("model.trim").write_bytes(Path("model.trim").read_bytes()[:-5])
    assert status(["decode", "model.trim"]) == 2
    said = capsys.readouterr().err
    assert "model.trim" in said
    assert said.count("\n") == 1
