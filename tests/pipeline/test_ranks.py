"""Where low rank pays: by what a device says that layers cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.compress.factorise.technique import Factorise
from trimtab.core.goal import Goal
from trimtab.core.metric import metric
from trimtab.core.target import Target
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.hardware.layer import Layer
from trimtab.pipeline.compress import compress
from trimtab.pipeline.fit import fit
from trimtab.pipeline.prepare import Prepared, prepare
from trimtab.pipeline.ranks import asked, paying_layers, ranks_worth
from trimtab.pipeline.sensitivity import sensitivities
from trimtab.pipeline.space import space_of
from trimtab.run.device import Clocked


def network() -> nn.Module:
    """Convolutions of 16 and 48 channels and a head: the second has nearly all multiply-adds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4)),
        ).eval()


@dataclass
class Fake:
    """A device whose layers cost what a rule says, and whose networks take given times."""

    name: str
    rule: Callable[[Layer], float]
    times: Mapping[str, float] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("fp32",)
    asked: list[Layer] = field(default_factory=list)

    def version(self) -> str:
        return "1"

    def layers(self, shapes: Sequence[Layer], precision: str, target: Target) -> dict[Layer, dict[str, float]]:
        self.asked += shapes
        return {layer: {"latency": self.rule(layer)} for layer in shapes}

    def clock(self, baseline: Path, files: Mapping[str, Path], *_: Any) -> dict[str, Clocked]:
        assert all(path.exists() for path in files.values())
        return {
            name: Clocked(self.name, {"latency": metric("latency", self.times[name], "measured", n=1)})
            for name in files
        }


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = Arrays(x, torch.arange(64) % 4, batch=32)
    return prepare(Task(network(), x[:2], calibrate=data), Target(), Goal(max_drop=None), 0)


def with_device(prepared: Prepared, device: Fake) -> Prepared:
    from dataclasses import replace

    return replace(prepared, device=device)  # type: ignore[arg-type]


def test_ranks_are_offered_where_the_layers_cost_less(prepared: Prepared) -> None:
    fair = Fake("fair", lambda layer: layer.macs * 1e-9)
    found = ranks_worth(prepared, Goal(), fair, "fp32")  # type: ignore[arg-type]
    # 48 x 432 at rank r: r (432 + 48) multiply-adds of 20,736 a place: 0.55 of them is r = 23, in eights 16; 0.3: 8
    assert found == {"2": [16, 8]}
    # each call has a price: two layers cost more than one
    dear = Fake("dear", lambda layer: 1e-3)
    assert ranks_worth(prepared, Goal(), dear, "fp32") == {}  # type: ignore[arg-type]
    # a small file is wanted, whatever the time
    assert ranks_worth(prepared, Goal(minimise="size"), dear, "fp32") == {"2": [16, 8]}  # type: ignore[arg-type]


def test_small_layers_are_not_even_timed(prepared: Prepared) -> None:
    fake = Fake("small", lambda layer: layer.macs * 1e-9)
    ranks_worth(prepared, Goal(), fake, "fp32")  # type: ignore[arg-type]
    assert {layer.inputs for layer in fake.asked} == {48, 16, 8}


@pytest.mark.parametrize(
    ("goal", "costs"),
    [
        (Goal(), ("latency",)),
        (Goal(minimise="size", at_least={"latency_ratio": 2.0}), ("latency", "size")),
        (Goal(at_most={"macs": 1e6}), ("latency", "macs")),
        (Goal(minimise="params"), ("latency",)),
    ],
)
def test_what_a_goal_asks_of_layers(goal: Goal, costs: tuple[str, ...]) -> None:
    assert asked(goal) == costs


def test_the_loss_of_a_rank_falls_with_it(prepared: Prepared) -> None:
    graph, context = prepared.graph, prepared.context
    space = space_of(graph, context, ("fp32",), ranks={"2": (48, 16, 2)})
    (site,) = [s for s in sensitivities(space, graph, context, "key") if s.name == "Factorise:2"]
    none, full, some, few = site.loss
    assert none == 0.0
    assert full == pytest.approx(0.0, abs=1e-6)
    assert full <= some < few


def test_a_layer_that_is_slower_as_a_chain_stays_whole_and_is_told(prepared: Prepared) -> None:
    technique = Factorise(ranks={"0": 8, "2": 16}, aware=True)
    # what reads 3 channels costs most of all in two layers
    fake = Fake("odd", lambda layer: 1.0 if layer.inputs == 8 else layer.macs * 1e-9, {"whole": 2.0, "low": 1.0})
    left, told = paying_layers(with_device(prepared, fake), technique, prepared.graph, integer=False)
    assert left == Factorise(ranks={"2": 16}, aware=True)
    (sentence,) = told
    assert sentence.startswith("Factorise: 0 would not be faster on this target (")
    assert "as 2 layers" in sentence


@pytest.mark.parametrize("low", [1.0, 3.0])
def test_a_network_that_is_not_faster_keeps_none(low: float, prepared: Prepared) -> None:
    fake = Fake("both", lambda layer: layer.macs * 1e-9, {"whole": 2.0, "low": low})
    left, told = paying_layers(with_device(prepared, fake), Factorise(ranks={"2": 16}), prepared.graph, integer=False)
    assert (left is None) == (low > 2.0)
    assert told == (
        () if low < 2 else ("Factorise did not make the network faster (3 s with it, 2 s without): dropped.",)
    )


def test_ranks_that_are_none_are_told(prepared: Prepared) -> None:
    fake = Fake("idle", lambda layer: 1.0)
    left, told = paying_layers(with_device(prepared, fake), Factorise(ranks={}), prepared.graph, integer=False)
    assert left is None
    assert "all stay whole" in told[0]
    assert fake.asked == []


def wide() -> nn.Module:
    """Linear layers of which the widest, with nearly all weights, is of rank 8 but for a little noise."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(32, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 4))
        with torch.no_grad():
            network[2].weight.copy_(torch.randn(768, 8) @ torch.randn(8, 768) / 80)
            network[2].weight.add_(torch.randn(768, 768) * 1e-5)
        return network.eval()


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    network, x = wide(), torch.randn(256, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        data = Arrays(x, network(x).argmax(1), batch=64)
    return Task(network, x[:2], calibrate=data, validate=data, test=data, score=accuracy, name="wide")


@pytest.mark.slow
def test_compress_keeps_what_is_faster_and_goes_on_with_it(task: Task, tmp_path: Path) -> None:
    steps = [Factorise(energy=0.99, aware=True, layers=("2",))]
    result = compress(task, steps, target="onnxruntime", out=tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    (step,) = plan["steps"]
    assert step == {"technique": "Factorise", "ranks": {"2": 8}, "aware": True}
    chosen = next(p for p in result.report["points"] if p["name"] == "compressed")
    # 590,000 weights become 12,000 in the layer that took nearly all of the time
    assert chosen["metrics"]["latency_ratio"]["value"] > 1.5
    assert chosen["metrics"]["score"]["value"] > 0.95
    again = compress(task, steps, target="onnxruntime", out=tmp_path / "run")
    assert json.loads((again.folder / "plan.json").read_text()) == plan


@pytest.mark.slow
def test_fit_chooses_ranks_beside_widths(task: Task, tmp_path: Path) -> None:
    result = fit(task, "onnxruntime:precision=fp32", Goal(max_drop=0.05, hours=0.02), out=tmp_path / "run")
    chosen = next(p for p in result.report["points"] if p["name"] == result.report["chosen"])
    (step,) = [s for s in chosen["plan"] if s["technique"] == "Factorise"]
    assert set(step["ranks"]) == {"2"}
    assert chosen["metrics"]["latency_ratio"]["value"] > 1.3
    assert chosen["metrics"]["score"]["value"] > 0.94
