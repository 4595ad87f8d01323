"""What every public technique keeps."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from trimtab import compress
from trimtab.compress.plan import apply_plan, step_of, technique_of
from trimtab.compress.technique import Technique
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.save import load, save
from trimtab.run.export import export_onnx

SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "Distil": (
        {"steps": 2, "lr": 0.01, "precision": "fp32", "channels_last": False},
        {
            "steps": 2,
            "precision": "fp32",
            "channels_last": False,
            "features": {"method": "fitnets", "project": "always"},
            "relations": {"method": "contrastive", "weight": 2, "places": {"block": "block.conv"}},
        },
    ),
    "Equalise": ({}, {"absorb": False, "relu6": "replace"}),
    "Exits": (
        {"at": 1, "train": {"steps": 2, "precision": "fp32", "channels_last": False}},
        {"at": ["conv1"], "threshold": [0.3], "temperature": [2.0], "confidence": "entropy", "train": {"steps": 0}},
        {"at": 1, "threshold": 0.1, "confidence": "margin", "layers": 0, "train": {"steps": 0}},
    ),
    "Experts": ({"experts": 4, "active": 2}, {"experts": 8, "active": 2, "split": "activity", "layers": ["up"]}),
    "Factorise": (
        {"share": 0.5, "multiple": 1},
        {"method": "spatial", "ranks": {"conv2": 6}, "aware": True},
        {"energy": 0.8, "aware": True, "multiple": 1},
        {"method": "tucker", "ranks": {"conv2": [4, 6]}},
        {"method": "cp", "ranks": {"conv2": 5}, "aware": True},
        {"method": "tt", "share": 0.5, "multiple": 1},
    ),
    "Gates": (
        {"train": {"steps": 2, "precision": "fp32", "channels_last": False}},
        {"at": ["block.conv"], "rate": 0.5, "hidden": 4, "train": {"steps": 0}},
    ),
    "Prune": (
        {"ratio": 0.5, "multiple": 2},
        {"keep": {"conv1.weight:0": [0, 3]}},
        {"ratio": 0.5, "score": "fisher", "allocate": "global"},
        {"ratio": 0.5, "score": "thinet", "allocate": "macs", "multiple": 2},
        {
            "ratio": 0.7,
            "multiple": 2,
            "schedule": "cubic",
            "rounds": 2,
            "train": {"steps": 2, "precision": "fp32", "channels_last": False},
        },
        {"ratio": 0.5, "before": {"rule": "soft", "every": 1, "steps": 2, "precision": "fp32", "channels_last": False}},
    ),
    "Quantise": (
        {},
        {"calibration": "mse", "skip": ["linear"]},
        {"train": {"steps": 2, "channels_last": False}},
        {"weight": {"kind": "ternary"}, "train": {"steps": 2, "channels_last": False}},
        {"weight": {"bits": 4}, "activation": {"bits": 8, "dynamic": True}},
        {"weight": {"bits": 4, "per": "group", "group": 8}, "activation": None, "layers": {"conv1": {"kind": "fp16"}}},
    ),
    "Recalibrate": ({"batches": 2},),
    "RemoveBlocks": ({"count": 1}, {"blocks": ["block.conv"]}),
    "Share": (
        {"bits": 3},
        {"clusters": 5, "init": "density", "biases": 2, "train": {"steps": 2, "channels_last": False}},
        {"bits": 4, "method": "product", "block": 4, "layers": {"conv1": {"bits": 2, "block": 9}}, "weighted": True},
        {"bits": 2, "per": "group", "group": 4, "init": "kmeans++", "skip": ["conv1"]},
    ),
    "Smooth": ({}, {"method": "awq", "group": 8}, {"insert": True}),
    "Sparsify": (
        {"ratio": 0.5},
        {"pattern": "2:4", "permute": True, "skip": ["linear"]},
        {"ratio": 0.6, "method": "wanda"},
        {"ratio": 0.5, "method": "sparsegpt"},
        {"ratio": 0.5, "method": "movement", "train": {"steps": 4, "precision": "fp32", "channels_last": False}},
        {"ratio": 0.8, "dynamic": "rigl", "train": {"steps": 4, "precision": "fp32", "channels_last": False}},
    ),
    "Swap": (
        {"error": 0.9, "train": {"steps": 2}},
        {"blocks": {"conv1": "separable", "conv2": "strips"}, "train": {"steps": 2, "optimiser": "sgd"}},
        {"share": 0.8, "train": None, "kinds": ["separable", "identity"]},
    ),
    "Tie": (
        {"groups": [["bn1", "block.bn"]]},
        {"groups": [["bn1", "block.bn"]], "train": {"steps": 2, "precision": "fp32", "channels_last": False}},
    ),
}
"""Settings to try each technique with; a technique that is not here is tried with its defaults."""

CASES = [
    pytest.param(name, settings, id=f"{name}-{i}")
    for name in compress.__all__
    for i, settings in enumerate(SETTINGS.get(name, ({},)))
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.block = Block()
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.up, self.down = nn.Linear(24, 32), nn.Linear(32, 24)
        self.linear = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(torch.relu(self.bn1(self.conv1(x))))
        x = torch.relu(self.conv2(x)).mean((2, 3))
        return self.linear(self.down(torch.relu(self.up(x))))


@pytest.fixture(scope="module")
def setting() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(32, 3, 6, 6)
    data = Arrays(x, torch.arange(32) % 4, batch=16, shuffle=True)
    graph = capture(model, x[:2])
    task = Task(model, x[:2], train=data, loss=nn.functional.cross_entropy)
    return graph, Context(task, teacher=graph, calibrate=((x,),))


def frozen(graph: Graph) -> tuple[str, dict[str, torch.Tensor]]:
    return str(graph.net.graph), {k: v.detach().clone() for k, v in graph.tensors().items()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def made(name: str, settings: Mapping[str, Any]) -> Technique:
    return technique_of({"technique": name, **settings})


def test_there_are_techniques() -> None:
    assert compress.__all__


def test_all_are_at_the_top_of_the_package() -> None:
    assert set(compress.__all__) <= set(trimtab.__all__)
    assert all(getattr(trimtab, name) is getattr(compress, name) for name in compress.__all__)


@pytest.mark.parametrize("name", compress.__all__)
def test_is_a_frozen_dataclass_that_satisfies_the_protocol_and_cites_a_source(name: str) -> None:
    kind = getattr(compress, name)
    assert issubclass(kind, Technique)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert re.search(r"\((19|20)\d\d\)", kind.__doc__ or "")


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_goes_through_json_and_back(name: str, settings: Mapping[str, Any]) -> None:
    technique = made(name, settings)
    assert step_of(technique_of(json.loads(json.dumps(step_of(technique))))) == step_of(technique)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_sites_are_axes_with_unique_names(name: str, settings: Any, setting: tuple[Graph, Context]) -> None:
    axes = made(name, settings).sites(*setting)
    assert len({axis.name for axis in axes}) == len(axes)
    assert all(len(axis.choices) > 1 for axis in axes)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_applies_twice_alike_and_changes_nothing_else(
    name: str, settings: Mapping[str, Any], setting: tuple[Graph, Context]
) -> None:
    graph, context = setting
    nodes, tensors = frozen(graph)
    model = {k: v.clone() for k, v in context.task.model.state_dict().items()}
    first = made(name, settings).apply(graph, context)
    torch.rand(3)
    second = made(name, settings).apply(graph, context)
    assert frozen(first)[0] == frozen(second)[0]
    assert same(frozen(first)[1], frozen(second)[1])
    assert frozen(graph)[0] == nodes
    assert same(frozen(graph)[1], tensors)
    assert same(context.task.model.state_dict(), model)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_result_runs_saves_loads_and_exports(
    name: str, settings: Mapping[str, Any], setting: tuple[Graph, Context], tmp_path: Path
) -> None:
    result = made(name, settings).apply(*setting)
    assert not result.net.training
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        value = result(x)
        assert isinstance(value, torch.Tensor)
        assert value.shape == (5, 4)
        assert bool(value.isfinite().all())
        save(result, tmp_path)
        again = load(tmp_path)
        assert same(again.tensors(), result.tensors())
        for other in (again, result.copy()):  # kernels sum in another order where tensors lie otherwise in memory
            found = other(x)
            assert isinstance(found, torch.Tensor)
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    export_onnx(result, tmp_path / "model.onnx")


@pytest.mark.parametrize(("name", "settings"), [c for c in CASES if c.values[0] in ("Equalise", "Smooth")])
def test_what_prepares_for_quantisation_computes_what_the_network_did(
    name: str, settings: Mapping[str, Any], setting: tuple[Graph, Context]
) -> None:
    graph, context = setting
    x = context.calibrate[0][0]
    with torch.no_grad():
        expected, found = graph(x), made(name, settings).apply(graph, context)(x)
    assert isinstance(expected, torch.Tensor)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", compress.__all__)
def test_unknown_settings_and_wrong_types_are_one_line(name: str) -> None:
    with pytest.raises(InputError, match="unknown setting") as caught:
        technique_of({"technique": name, "no_such_setting": 1})
    assert "\n" not in str(caught.value)
    first = dataclasses.fields(getattr(compress, name))[0].name
    with pytest.raises(InputError, match=f"{name}: .*expected"):
        technique_of({"technique": name, first: object()})


def test_a_plan_of_several_steps_replays_alike(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    plan = Plan(
        (
            {"technique": "RemoveBlocks", "blocks": ["block.conv"]},
            {"technique": "Prune", "keep": {"conv1.weight:0": [0, 2, 5, 7, 8, 9, 12, 15]}},
            {"technique": "Recalibrate", "batches": 2},
            {"technique": "Distil", "steps": 2, "precision": "fp32", "channels_last": False},
            {"technique": "Quantise", "skip": ["linear"]},
        )
    )
    first, second = apply_plan(graph, plan, context), apply_plan(graph, plan, context)
    assert same(first.tensors(), second.tensors())
    assert first.tensors()["conv1.weight"].shape == (8, 3, 3, 3)
    assert first.tensors()["linear.weight"].dtype == torch.float32
