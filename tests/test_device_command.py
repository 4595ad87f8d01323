"""`trimtab device`: refuses what is wrong in one line, serves, and stops at Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from trimtab.cli import status
from trimtab.run.remote.device import remote
from trimtab.run.remote.server import listen


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "70000"], "--port"),
        (["--port", "http"], "--port"),
        (["--max-mb", "0"], "--max-mb"),
        (["--token", ""], "option --token: got no such token"),
        (["--token", "two words"], "option --token: got no such token"),
        (["--token", "schlüssel"], "option --token: got no such token"),
        (["--host", "0.0.0.0", "--token", "short"], "option --token: got 5 characters, expected at least 16"),
        (["--host", "board.invalid", "--token", "a-token-that-is-long"], "cannot listen: board.invalid:7070"),
        (["--bogus"], "No such option"),
    ],
)
def test_a_wrong_option_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], told: str) -> None:
    assert status(["device", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert status(["device", "--port", port]) == 2
    assert f"cannot listen: 127.0.0.1:{port}: got Address already in use" in capsys.readouterr().err


def test_it_serves_until_ctrl_c() -> None:
    command = [sys.executable, "-c", "from trimtab.cli import main; main(['device', '--port', '0'])"]
    own = {name: value for name, value in os.environ.items() if name != "TRIMTAB_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(3)]
            url = re.fullmatch(r"target +(http://127\.0\.0\.1:\d+)\n", said[1])
            token = re.fullmatch(r"token +(\S{32}) .*\n", said[2])
            assert url is not None, said
            assert token is not None, said
            assert "onnxruntime" in said[0]
            assert remote(url[1], token=token[1]).version()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "stopped" in err
    assert "Traceback" not in err
