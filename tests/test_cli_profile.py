import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.test_cli import SMALL
from trimtab.cli import status
from trimtab.profile import batch


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small network: convolution and relu, of a free batch."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "conv.weight")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["batch", 3, 8, 8]), ("y", ["batch", 4, 6, 6]))
    ]
    nodes = [helper.make_node("Conv", ["x", "conv.weight"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(capsys, *arguments):
    """Status, stdout and stderr of a command."""
    code = status(["profile", "net.onnx", "--target", "onnxruntime", *arguments])
    return code, *capsys.readouterr()


def test_fusion(here, capsys):
    code, out, _ = run(capsys, "--fusion", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert [(o["operator"], o["state"]) for o in found["operators"][:2]] == [("Conv", "kernel"), ("Relu", "fused")]
    assert found["counts"]["fused"] == 1
    _, out, _ = run(capsys, "--fusion")
    assert "Conv+Relu" in out
    assert "2 operators in the file" in out


def test_batches(here, capsys, monkeypatch):
    monkeypatch.setattr(batch, "_LONGEST", 0.0)
    code, out, err = run(capsys, "--batches", "--json", "--out", "b.svg")
    assert code == 0
    assert [point["batch"] for point in json.loads(out)] == [1]
    assert "the picture is in b.svg" in err
    assert (here / "b.svg").read_text().startswith("<svg")


def test_another_device_tells_of_its_layers(here, capsys):
    (here / "small.py").write_text(SMALL)
    assert status(["profile", "small.py", "--target", "cortex-m7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runtime"] == "roofline"
    assert [row["name"] for row in found["rows"]] == ["0", "2"]
    assert sum(row["seconds"] for row in found["rows"]) == pytest.approx(found["metrics"]["latency"]["value"])
    assert status(["profile", "small.py", "--target", "cortex-m7"]) == 0
    out = capsys.readouterr().out
    assert "cortex-m7, modelled by roofline" in out
    assert "Estimated in the device's description" in out
    for arguments, told in ((["net.onnx"], "got an ONNX file"), (["small.py", "--plot"], "got --plot")):
        assert status(["profile", *arguments, "--target", "cortex-m7"]) == 2
        assert told in capsys.readouterr().err


def test_two_at_once_and_a_picture_of_another_kind(here, capsys):
    code, _, err = run(capsys, "--fusion", "--plot")
    assert (code, err) == (2, "trimtab: profile: got --plot and --fusion, expected one of them\n")
    for what in ("--plot", "--batches"):
        code, _, err = run(capsys, what, "--out", "picture.png")
        assert code == 2
        assert "expected .svg or .html" in err
