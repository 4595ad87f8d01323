"""The whole of fit for a device that a file describes: its latency and energy are modelled, its score is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.hardware.boards import integer_only, limited, written
from tests.pipeline.test_fit import data, learnt, plain
from trimtab.core.goal import Goal
from trimtab.core.target import parse
from trimtab.core.task import Task, accuracy
from trimtab.pipeline.fit import MEMORY, fit
from trimtab.pipeline.preflight import preflight
from trimtab.pipeline.verify import verify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Two convolutions and a head, trained for a moment: some 17 kB in fp32, 5 kB in int8."""
    return learnt(lambda: plain(16), 1e-2, 3)


@pytest.fixture
def task(network: nn.Module) -> Task:
    """Without training data: networks are cut and quantised only."""
    parts = {"validate": data(128, 2), "test": data(128, 3)}
    return Task(network, torch.randn(2, 1, 8, 8), score=accuracy, name="quarters", **parts)


@pytest.mark.parametrize("minimise", ["latency", "energy"])
def test_an_integer_only_board(task: Task, tmp_path: Path, minimise: str) -> None:
    board = written(tmp_path, integer_only())
    goal = Goal(minimise=minimise, max_drop=None, hours=0.01)
    result = fit(task, str(board), goal, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    metrics = chosen["metrics"]
    assert result.met
    assert report["runtime"] == "roofline"
    assert {metrics[n]["source"] for n in ("latency", "energy", "edp", "peak_memory")} == {"modelled"}
    assert (metrics["score"]["source"], metrics["score"]["split"]) == ("measured", "test")
    # the original's figures are those of its int8 form, which the ratios count from
    whole = next(p for p in report["points"] if p["name"] == "original")["metrics"]
    assert whole["latency_ratio"]["value"] == 1.0
    name = f"{minimise}_ratio"
    assert metrics[name]["value"] == pytest.approx(whole[minimise]["value"] / metrics[minimise]["value"])
    assert metrics[name]["value"] > 1
    assert "25 MHz at 0.6 V" in chosen["other_runtimes"]
    assert any("least energy is at" in note for note in report["notes"])
    assert sum(row["seconds"] for row in chosen["costs"]) == pytest.approx(metrics["latency"]["value"])
    assert sum(row["joules"] for row in chosen["costs"]) == pytest.approx(metrics["energy"]["value"])
    assert all(
        any(s["technique"] == "Quantise" for s in p["plan"]) for p in report["points"] if p["name"] != "original"
    )
    checked = verify(tmp_path / "run", task)
    assert [row for row in checked.rows if not row.ok] == []


def test_a_network_that_does_not_fit_is_made_to_fit(task: Task, tmp_path: Path) -> None:
    board = written(tmp_path, limited(1e5, 3e3))
    result = fit(task, str(board), Goal(minimise="latency", max_drop=None, hours=0.01), out=tmp_path / "run")
    report = result.report
    assert result.met
    assert report["chosen"] not in ("original", "int8")
    assert any("NotRunnable" in f["error"] and "flash" in f["error"] for f in report["failed"])
    assert any(note.startswith("It fits") for note in report["notes"])


def test_where_nothing_fits_the_memory_binds(task: Task, tmp_path: Path) -> None:
    board = written(tmp_path, limited(10, 1e6))
    result = fit(task, str(board), Goal(minimise="latency", max_drop=None, hours=0.01), out=tmp_path / "run")
    assert not result.met
    assert result.binding == MEMORY
    assert any("do not fit in its SRAM" in note for note in result.report["notes"])
    assert (tmp_path / "run" / "model.onnx").exists()


def test_preflight_does_not_need_a_network_that_fits(task: Task, tmp_path: Path) -> None:
    board = written(tmp_path, limited(10, 1e6))
    found = preflight(task, parse(str(board)), Goal(max_drop=None))
    assert found["ok"], found["checks"]
