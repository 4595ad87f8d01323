"""Batch: a goal on cost picks the batch too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.networks import small
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import metric
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.pipeline.fit import fit
from trimtab.profile.batch import BatchPoint
from trimtab.report.read import read as read_report


def swept(path: Path, target: Target, largest: int, most: float) -> tuple[BatchPoint, ...]:
    """0.8 ms a call and 0.2 ms a sample: 1, 0.6, 0.4, 0.3 ms a sample."""
    assert path.is_file()
    found = []
    for batch in (1, 2, 4, 8):
        seconds = 0.8e-3 + 0.2e-3 * batch
        figures = {"latency": seconds, "throughput": batch / seconds, "cost": seconds / batch}
        metrics = {n: metric(n, v, "measured") for n, v in figures.items()}
        found.append(BatchPoint(batch, target.threads, "onnxruntime", metrics))
    return tuple(found)


def test_a_goal_on_cost_picks_the_largest_batch_within_the_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def counted(path: Path, target: Target, largest: int, most: float) -> tuple[BatchPoint, ...]:
        calls.append((largest, most))
        return swept(path, target, largest, most)

    monkeypatch.setattr(sys.modules["trimtab.pipeline.batch"], "sweep", counted)
    task = Task(small().eval(), torch.randn(2, 1, 8, 8), name="quarters")
    goal = Goal(minimise="cost", max_drop=None, at_most={"latency": 1.7e-3}, hours=0.01)
    result = fit(task, "onnxruntime:precision=fp32", goal, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["batch"]["best"] == 4
    assert report["batch"]["at_most"] == 1.7e-3
    assert [p["batch"] for p in report["batch"]["points"]] == [1, 2, 4, 8]
    assert report["goal"]["minimise"] == "cost"
    assert any("The cheapest batch within 1.7 ms is 4: 400 us of a core per sample" in n for n in report["notes"])
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])["metrics"]
    assert chosen["cost"]["value"] == pytest.approx(chosen["latency"]["value"])
    assert chosen["cost"]["unit"] == "s"
    assert result.met
    assert calls == [(64, 1.7e-3)]
    assert read_report(tmp_path / "run").notes == tuple(report["notes"])


def test_a_bound_that_no_batch_keeps_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["trimtab.pipeline.batch"], "sweep", swept)
    task = Task(small().eval(), torch.randn(2, 1, 8, 8), name="quarters")
    goal = Goal(minimise="cost", max_drop=None, at_most={"latency": 1e-9}, hours=0.01)
    result = fit(task, "onnxruntime:precision=fp32", goal, out=tmp_path / "run")
    assert (result.met, result.binding) == (False, "latency")
    assert result.report["batch"]["best"] is None
    assert any("No batch keeps the bound on latency" in n for n in result.report["notes"])


def test_a_device_that_tells_no_cost_refuses_the_goal() -> None:
    task = Task(small().eval(), torch.randn(2, 1, 8, 8), name="quarters")
    with pytest.raises(InputError, match="minimise"):
        fit(task, "cortex-m7", Goal(minimise="cost"), out="never")
