"""Swaps chosen together by what layers cost on the target, proved, and never kept where they are slower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.compress.swappable import Wide
from trimtab.compress.swap.technique import Swap
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import metric
from trimtab.core.store import Store
from trimtab.core.target import Target
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.graph.save import load
from trimtab.hardware.layer import Layer
from trimtab.pipeline import swap as module
from trimtab.pipeline.compress import compress
from trimtab.pipeline.prepare import prepare
from trimtab.pipeline.swap import _budgets, swap, together


def task(train: bool = True) -> Task:
    """Four classes told apart by the mean colour; the network answers by chance."""
    torch.manual_seed(0)
    x, y = torch.randn(96, 3, 12, 12), torch.arange(96) % 4
    x[:, 0] += y[:, None, None] - 1.5
    return Task(
        Wide().eval(),
        x[:2],
        train=Arrays(x, y, batch=16, shuffle=True) if train else None,
        calibrate=Arrays(x[:32], None, batch=16),
        validate=Arrays(x[32:64], y[32:64]),
        test=Arrays(x[64:], y[64:]),
        loss=nn.functional.cross_entropy,
        score=accuracy,
        name="swap",
    )


TECHNIQUE = Swap(share=0.5, kinds=("separable", "stacked", "identity"), train={"steps": 4})


def by_macs(shapes: list[Layer]) -> dict[Layer, float]:
    return {layer: 1e-9 * layer.macs for layer in shapes}


def test_the_choice_is_that_of_the_measured_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def slow_depthwise(shapes: list[Layer]) -> dict[Layer, float]:
        return {layer: 1.0 if layer.groups > 1 else 1e-9 * layer.macs for layer in shapes}

    prepared = prepare(task(), Target(precision="fp32"), Goal(), 0, Store(tmp_path))
    monkeypatch.setattr(module, "seconds_of", lambda *_: by_macs)
    free = together(prepared, TECHNIQUE)
    assert "separable" in free.least().values()
    monkeypatch.setattr(module, "seconds_of", lambda *_: slow_depthwise)
    again = replace(prepared, key="another")  # the table of a run is settled once
    assert "separable" not in together(again, TECHNIQUE).least().values()


@pytest.mark.slow
def test_a_run_leaves_a_network_that_is_faster_or_the_original(tmp_path: Path) -> None:
    goal = Goal(minimise="latency", max_drop=0.5, hours=0.01)
    result = swap(task(), "cpu:precision=fp32", goal, technique=TECHNIQUE, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    names = {p["name"] for p in report["points"]}
    assert "original" in names
    assert result.report["chosen"] in names
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    assert chosen["metrics"]["latency_ratio"]["value"] > 0.9
    assert load(tmp_path / "run")(torch.randn(3, 3, 12, 12)).shape == (3, 4)


@pytest.mark.slow
def test_compress_settles_a_share_by_measured_times(tmp_path: Path) -> None:
    compress(task(), [TECHNIQUE], target="cpu:precision=fp32", out=tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    (step,) = plan["steps"]
    assert set(step) == {"technique", "blocks", "kinds", "train"}
    assert step["blocks"]


def test_without_data_to_choose_on_there_is_one_sentence(tmp_path: Path) -> None:
    bare = replace(task(), validate=None, test=None, score=None)
    with pytest.raises(InputError, match="no data to choose on"):
        swap(bare, "cpu:precision=fp32", technique=TECHNIQUE, out=tmp_path / "run")


def test_a_wanted_ratio_counts_from_the_original_in_the_default_runtime() -> None:
    latency = metric("latency", 1.0, "measured", n=1), metric("latency_ratio", 1.5, "measured", n=1)
    clocked = SimpleNamespace(metrics=dict(zip(("latency", "latency_ratio"), latency, strict=True)))
    original: Any = SimpleNamespace(metrics={}, clocked=clocked)
    run: Any = SimpleNamespace(goal=Goal(at_least={"latency_ratio": 2.0}))
    assert 0.75 in _budgets(run, original)  # 1.5 s / 2 of the 1 s that it takes in the runtime that is fastest
    run.goal = Goal(at_most={"latency": 0.5})
    assert 0.5 in _budgets(run, original)
