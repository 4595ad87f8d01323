"""Repairs: each kept only where it helps, in order, and only where quantisation costs something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.networks import lively
from trimtab.core.goal import Goal
from trimtab.core.metric import metric
from trimtab.core.plan import Plan
from trimtab.core.target import Target
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.pipeline import repair
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared, prepare
from trimtab.pipeline.repair import REPAIRS, equalised, learnt_rounding, noticed, repaired, spared, with_settings
from trimtab.run.device import Clocked

STEP = {"technique": "Quantise"}
CULPRIT = "layer2.0.conv2"
COARSE = {"technique": "Quantise", "layers": {CULPRIT: {"bits": 2}}}


def task(labels: bool = True) -> Task:
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(8))
    network = lively(x)
    with torch.no_grad():
        data = Arrays(x, network(x).argmax(1), batch=32)
    if not labels:
        return Task(network, x[:2], calibrate=[x], name="unlabelled")
    return Task(network, x[:2], calibrate=[x], validate=data, test=data, score=accuracy, name="echo")


def prepared(labels: bool = True) -> Prepared:
    return prepare(task(labels), Target("cpu", "onnxruntime"), Goal(max_drop=0.5), 0)


def original() -> Point:
    return Point("original", Plan(), Path("model.onnx"), Clocked("onnxruntime", {}), {}, None, Path("model.onnx"))


def test_plans_are_changed_where_they_quantise_only() -> None:
    plan = Plan(({"technique": "Prune", "keep": {}}, STEP))
    assert with_settings(plan, calibration="mse").steps == (plan.steps[0], {**STEP, "calibration": "mse"})
    assert [s["technique"] for s in equalised(plan).steps] == ["Prune", "Equalise", "Quantise"]
    assert equalised(equalised(plan)) == equalised(plan)
    assert learnt_rounding(plan) == plan
    assert learnt_rounding(Plan((COARSE,))).steps[0]["rounding"] == "adaround"


def test_a_layer_of_few_bits_is_raised_to_eight_and_one_of_eight_left_in_floating_point() -> None:
    step = spared(equalised(Plan((COARSE,))), [CULPRIT, "linear"]).steps[1]
    assert step["layers"] == {}
    assert step["skip"] == ["linear"]


def test_what_costs_little_is_left_alone() -> None:
    assert not noticed(0.001, Goal(max_drop=0.01))
    assert noticed(0.0011, Goal(max_drop=0.01))
    found = repaired(prepared(), Plan((STEP,)), Goal(max_drop=0.5), original(), 60.0)
    assert (found.plan, found.kept, found.dropped) == (Plan((STEP,)), (), ())


@pytest.mark.parametrize("labels", [True, False])
def test_ranges_of_a_coarse_network_are_repaired_first(labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "REPAIRS", REPAIRS[:1])
    monkeypatch.setattr(repair._Bench, "holds", lambda self, plan: False)
    plan = Plan(({"technique": "Quantise", "weight": {"bits": 3}},))
    found = repaired(prepared(labels), plan, Goal(max_drop=0.02), original(), 60.0)
    assert next(s.partition(",")[0] for s in found.kept).startswith("Repair: ranges by least squared error: a ")
    assert found.plan.steps[0]["calibration"] == "mse"


def test_what_does_not_help_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = ("two bits", lambda plan: with_settings(plan, weight={"bits": 2}))
    breaks = ("no such layer", lambda plan: with_settings(plan, skip=["nothing"]))
    monkeypatch.setattr(repair, "REPAIRS", (worse, breaks))
    plan = Plan(({"technique": "Quantise", "weight": {"bits": 3}},))
    found = repaired(prepared(), plan, Goal(max_drop=0.001), original(), 0.0)
    assert found.dropped == ()  # no time: nothing is begun
    made = prepared()
    monkeypatch.setattr(repair._Bench, "holds", lambda self, plan: False)
    found = repaired(made, plan, Goal(max_drop=0.001), original(), 60.0)
    assert found.plan == plan
    assert "two bits did not help" in found.dropped[0]
    assert "no such layer: InputError" in found.dropped[1]
    assert "the rest of the goal no longer holds" in found.dropped[2]


def test_the_costliest_layer_is_left_in_higher_precision_while_the_goal_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "REPAIRS", ())
    asked: list[Any] = []

    def sized(prepared: Prepared, plan: Plan, original: Point, seconds: float) -> tuple[Clocked, float]:
        asked.append(plan)
        return Clocked("onnxruntime", {"latency": metric("latency", 1e-3, "measured")}), 1000.0

    monkeypatch.setattr(repair, "sized", sized)
    monkeypatch.setattr(repair, "onnx_size", lambda file: metric("size", 4000.0, "measured"))
    goal = Goal(max_drop=0.01, at_most={"latency": 2e-3}, at_least={"size_ratio": 3.0})
    found = repaired(prepared(), Plan((COARSE,)), goal, original(), 60.0)
    assert asked[0].steps[0]["layers"] == {}
    assert f"{CULPRIT} left in higher precision" in found.kept[0]
    tight = replace(goal, at_least={"size_ratio": 5.0})
    refused = repaired(prepared(), Plan((COARSE,)), tight, original(), 60.0)
    assert (refused.kept, refused.plan) == ((), Plan((COARSE,)))
