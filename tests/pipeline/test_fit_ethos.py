"""The whole of fit for an Ethos-U: its latency is modelled by Vela, its score is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.pipeline.test_fit import data, learnt, plain
from trimtab.core.goal import Goal
from trimtab.core.task import Task, accuracy
from trimtab.pipeline.fit import fit
from trimtab.pipeline.verify import verify

pytest.importorskip("executorch")
pytest.importorskip("ethosu.vela")
pytest.importorskip("tosa_serializer")
pytestmark = pytest.mark.slow


@pytest.fixture
def task() -> Task:
    """Two convolutions and a head, trained for a moment. Without training data: it is cut and quantised only."""
    parts = {"validate": data(128, 2), "test": data(128, 3)}
    return Task(learnt(lambda: plain(32), 1e-2, 3), torch.randn(2, 1, 8, 8), score=accuracy, name="quarters", **parts)


def test_ethos_u55(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = fit(task, "ethos-u55-128", Goal(max_drop=0.5, hours=0.02), out=out)
    report = json.loads((out / "report.json").read_text())
    metrics = next(p for p in report["points"] if p["name"] == report["chosen"])["metrics"]
    assert result.met
    assert report["runtime"] == "vela"
    assert {metrics[name]["source"] for name in ("latency", "latency_ratio", "peak_memory")} == {"modelled"}
    assert metrics["score"]["source"] == "measured"
    # the original has no latency of its own there: that of its int8 form stands for it, and a cut one is faster
    assert metrics["latency_ratio"]["value"] > 1
    assert report["baseline"]["metrics"]["latency"]["value"] > metrics["latency"]["value"]
    assert any("cycles at 500 MHz" in note for note in report["notes"])
    assert (out / "model.pte").read_bytes()[4:8] == b"ET12"
    assert metrics["size"]["value"] == (out / "model.pte").stat().st_size
    found = verify(out, task)
    assert found.ok, found.rows
