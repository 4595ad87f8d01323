"""`trimtab explain`: the table, the page, JSON, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import SMALL, refused
from trimtab.cli import status


@pytest.fixture
def run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task in the working folder, and beside it what explain reads of a run on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)
    folder = tmp_path / "run"
    folder.mkdir()
    report = {"target": {"device": "cpu"}, "seed": 0, "chosen": "int8", "points": []}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "steps": [{"technique": "Quantise"}]}))
    return folder


def test_explain_prints_a_table_and_writes_a_page(run_left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["--help"]) == 0
    assert "\n  explain " in capsys.readouterr().out
    assert status(["explain", "run", "--task", "small.py"]) == 0
    out = capsys.readouterr().out
    assert "weight SQNR" in out
    assert "validate" in out
    assert "run/explain.html" in out
    assert (run_left / "explain.html").read_text().startswith("<!doctype html>")
    assert status(["explain", "run", "--task", "small.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run_left / "explain.json").read_text())


def test_what_cannot_be_explained_is_one_line(run_left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--task" in refused(capsys, "explain", "run")
    assert "no such folder" in refused(capsys, "explain", "nowhere", "--task", "small.py")
    assert "no report.json" in refused(capsys, "explain", ".", "--task", "small.py")
    assert "no such file: nothing.py" in refused(capsys, "explain", "run", "--task", "nothing.py")
    (run_left / "plan.json").write_text(json.dumps({"schema": 1, "steps": []}))
    assert "nothing is quantised" in refused(capsys, "explain", "run", "--task", "small.py")


def test_nothing_in_the_folder_is_imported(run_left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_left / "task.py").write_text("raise SystemExit('imported')")
    report = json.loads((run_left / "report.json").read_text())
    (run_left / "report.json").write_text(json.dumps(report | {"task": "run/task.py", "tasks": "run/task.py:task"}))
    assert status(["explain", "run", "--task", "small.py", "--json"]) == 0
    assert "imported" not in capsys.readouterr().out
