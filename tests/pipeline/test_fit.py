"""The main job on a small network and small data: whole, killed and resumed, without data, with a hard goal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trimtab as tt
from tests.pipeline.networks import small
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.pipeline.choose import choose
from trimtab.pipeline.compress import apply_to, compress
from trimtab.pipeline.fit import fit
from trimtab.pipeline.verify import verify


def data(n: int, seed: int, shuffle: bool = False) -> Arrays:
    """Images whose class is the quarter that is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    images = torch.randn(n, 1, 8, 8, generator=generator) * 0.5
    for i, label in enumerate(labels.tolist()):
        images[i, :, (label // 2) * 4 :, (label % 2) * 4 :][:, :4, :4] += 1.5
    return Arrays(images, labels, batch=32, shuffle=shuffle)


def learnt(make: Callable[[], torch.nn.Module], rate: float, epochs: int) -> torch.nn.Module:
    """A network of seeded weights, trained on the quarters, evaluating."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().train()
        optimiser = torch.optim.Adam(network.parameters(), rate)
        for _ in range(epochs):
            for x, y in data(256, 1, shuffle=True):
                loss = torch.nn.functional.cross_entropy(network(x), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.eval()


def plain(width: int) -> torch.nn.Module:
    """Two convolutions, of 24 and `width` channels, and a head."""
    nn = torch.nn
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, width, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4)),
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        learnt(small, 3e-3, 6),
        torch.randn(2, 1, 8, 8),
        train=data(256, 1, shuffle=True),
        validate=data(128, 2),
        test=data(128, 3),
        loss=torch.nn.functional.cross_entropy,
        score=accuracy,
        name="quarters",
    )


@pytest.mark.slow
def test_fit_killed_resumed_verified_and_replayed(task: Task, tmp_path: Path) -> None:
    goal = Goal(minimise="size", max_drop=0.5, hours=0.01)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    seen: list[str] = []

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what == "race 2":
            raise Killed

    with pytest.raises(Killed):
        fit(task, "cpu", goal, out=tmp_path / "run", progress=kill)
    result = fit(task, "cpu", goal, out=tmp_path / "run")
    assert "train" in seen
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["met"] is result.met
    chosen = next(p for p in report["points"] if p["name"] == report["chosen"])
    size = (tmp_path / "run" / "model.onnx").stat().st_size
    assert chosen["metrics"]["size"]["value"] == size
    assert chosen["metrics"]["score"]["split"] == "test"
    assert report["control"] is not None
    assert "original" in {p["name"] for p in report["points"]}
    network = tt.load(tmp_path / "run")
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 4)

    checked = verify(tmp_path / "run", task)
    assert [row for row in checked.rows if not row.ok and row.name != "latency_ratio"] == []

    plan = Plan.of_json(json.loads((tmp_path / "run" / "plan.json").read_text()))
    replayed = apply_to(plan, task, out=tmp_path / "again")
    assert (replayed.folder / "model.onnx").read_bytes() == (tmp_path / "run" / "model.onnx").read_bytes()

    choose(tmp_path / "run", "original")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["chosen"] == "original"


@pytest.mark.slow
def test_without_data_only_precision_changes(task: Task, tmp_path: Path) -> None:
    bare = Task(task.model, task.example, name="bare")
    result = fit(bare, "onnxruntime", Goal(minimise="size", hours=0.01), out=tmp_path / "run")
    plans = [[s["technique"] for s in p["plan"]] for p in result.report["points"]]
    assert plans == [[], ["Quantise"]]
    assert result.report["chosen"] == "int8"
    assert result.report["control"] is None
    assert any("no score" in n for n in result.report["notes"])


@pytest.mark.slow
def test_a_goal_out_of_reach_keeps_the_nearest_and_names_what_binds(task: Task, tmp_path: Path) -> None:
    few = Task(task.model, task.example, validate=data(64, 2), score=accuracy, name="few")
    goal = Goal(minimise="size", max_drop=1.0, at_most={"size": 10.0}, hours=0.01)
    result = fit(few, "onnxruntime", goal, out=tmp_path / "run")
    assert not result.met
    assert result.binding == "size"
    assert (tmp_path / "run" / "model.onnx").exists()
    assert any("split" in n for n in result.report["notes"])


@pytest.mark.slow
def test_compress_resolves_ratios_into_indices(task: Task, tmp_path: Path) -> None:
    result = compress(task, [tt.Prune(ratio=0.5), tt.Quantise()], out=tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [s["technique"] for s in plan["steps"]] == ["Prune", "Quantise"]
    assert all(isinstance(i, int) for units in plan["steps"][0]["keep"].values() for i in units)
    assert result.report["chosen"] == "compressed"
