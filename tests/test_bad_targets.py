"""A target that cannot be: one line on stderr that names what, where and what to do, and exit status 2."""

import importlib.util
import socket

import pytest

from tests.hardware.boards import BOARD
from tests.hardware.test_accelerator import ARRAY
from tests.test_cli import SMALL, refused
from trimtab.cli import status


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a task in it, and no token at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIMTAB_TOKEN", raising=False)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.py").write_text(SMALL)
    return tmp_path


def said(capsys, target):
    return refused(capsys, "fit", "small.py", "--hours", "0.001", "--out", "run", "--target", target)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOARD.replace("int8 = 100e6", "int8 = -100e6"), "peak.int8: ./own.toml: got -100000000.0"),
        (BOARD.replace("bandwidth = 10e6\n", ""), "memory[1].bandwidth: ./own.toml: got nothing"),
        (BOARD.replace('source = "made up"', "", 1), "peak.source: ./own.toml: got nothing"),
        (ARRAY.replace("capacity = 65536", "capacity = -1"), "memory[2].capacity: ./own.toml: got -1"),
        ("name = ", "device: not TOML: own.toml"),
        ("a = 1", "got a, expected [peak] and the rest of a data sheet, or [array]"),
    ],
)
def test_a_file_with_a_wrong_figure(here, capsys, text, told):
    (here / "own.toml").write_text(text)
    assert told in said(capsys, "./own.toml")
    assert not (here / "run").exists()


def test_an_operator_that_the_device_lacks(here, capsys):
    text = f'{BOARD}\n[operators]\nnames = ["conv2d", "relu"]\nsource = "made up"\n'
    (here / "own.toml").write_text(text)
    assert status(["fit", "small.py", "--hours", "0.001", "--out", "run", "--target", "./own.toml"]) == 2
    out, err = capsys.readouterr()
    *progress, line = err.splitlines()  # the network was captured before it could be seen
    assert line.startswith("trimtab: board does not run linear: 0: expected one of conv2d, relu. Write that step with")
    assert (out, [text for text in progress if not text.startswith("capture")]) == ("", [])


def test_a_machine_that_is_gone(here, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert f"target: {url}: got no token" in said(capsys, url)
    monkeypatch.setenv("TRIMTAB_TOKEN", "a-token")
    line = said(capsys, url)
    assert f"target: {url}: got device is gone, Connection refused. Start `trimtab device` there" in line
    assert "a-token" not in line


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("openvino", "target: openvino: got openvino is not installed. Install it: pip install 'trimtab[openvino]'"),
        ("executorch", "pip install 'trimtab[executorch]'"),
        ("eyeriss-like", "pip install 'trimtab[accelerator]'"),
    ],
)
def test_a_runtime_that_is_not_installed(here, capsys, monkeypatch, target, told):
    honest = importlib.util.find_spec
    missing = ("openvino", "executorch", "zigzag")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in missing else honest(name, *more)
    )
    assert told in said(capsys, target)


def test_a_compiler_that_is_not_installed(here, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, *more: None)
    assert "target: inductor: got inductor needs a C++ compiler. Install one: apt install g++." in said(
        capsys, "inductor"
    )


def test_a_machine_that_answers_something_else(here, capsys, monkeypatch):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tests.run.remote.serving import answering, http

    monkeypatch.setenv("TRIMTAB_TOKEN", "a-token")
    with answering(lambda path: http(b"<html>Welcome to the router</html>")) as url:
        line = said(capsys, url)
    assert f"target: {url}: got device answers nonsense" in line
    assert "Is `trimtab device` what listens there, and of this version?" in line


def test_another_precision_than_the_device_has(here, capsys):
    assert "target: precision: got 'fp16', expected fp32 or int8" in said(capsys, "cortex-m7:precision=fp16")
