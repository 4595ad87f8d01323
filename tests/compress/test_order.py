"""Which technique can follow which: the table itself, and that a plan is refused before anything is done."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.compress import Distil, Equalise, Prune, Quantise, Recalibrate, RemoveBlocks, Smooth
from trimtab.compress.order import DYNAMIC, REFUSED, STRUCTURE, VALUES, check_order, refusal
from trimtab.compress.plan import apply_plan, plan_of, techniques
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compression.md"


def technique(name: str, **settings: Any) -> Any:
    """A stand-in with the name of a technique."""
    made = dataclasses.make_dataclass(name, [(key, type(value)) for key, value in settings.items()], frozen=True)
    return made(**settings)


def names() -> list[str]:
    return sorted({name for r in REFUSED for name in (*r.before, *r.after)})


def test_every_public_technique_has_a_place_in_the_table() -> None:
    assert set(techniques()) <= {"Quantise", *STRUCTURE, *DYNAMIC, *VALUES}


@pytest.mark.parametrize(
    "chain",
    [
        [Prune(ratio=0.5), Distil(steps=1), Quantise()],
        [RemoveBlocks(count=1), Prune(ratio=0.5), Recalibrate(), Distil(steps=1), Equalise(), Smooth(), Quantise()],
        [Distil(steps=1), Prune(ratio=0.5), Distil(steps=1), Prune(ratio=0.5), Distil(steps=1)],
        [technique("Sparsify"), Prune(ratio=0.5), Distil(steps=1), technique("Share")],
        [Prune(ratio=0.5), technique("Factorise"), technique("Sparsify"), Distil(steps=1), Quantise()],
        [technique("Sparsify", pattern="free"), Prune(ratio=0.5), technique("Sparsify", pattern="2:4"), Quantise()],
        [technique("Swap"), technique("Factorise"), Distil(steps=1), technique("Exits"), Equalise(), Quantise()],
        [technique("Share"), Prune(ratio=0.5), Quantise(weight={"bits": 8, "per": "tensor"})],
        [technique("Share"), Quantise(weight={"per": "tensor"}, layers={"conv1": {"bits": 4}})],
        [technique("Gates"), technique("Share", train=None), Quantise(weight={"per": "tensor"})],
        [],
    ],
)  # fmt: skip
def test_sensible_orders_are_taken(chain: list[Any]) -> None:
    check_order(chain)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([Quantise(), Prune(ratio=0.5)], "step 2: Prune can't follow Quantise .step 1.: its weights are integers"),
        ([Quantise(), technique("Factorise")], "Factorise can't follow Quantise"),
        ([Quantise(), Distil(steps=1)], "no gradient. Train before, or inside: quantise.train"),
        ([Quantise(), technique("Share")], "Put quantise last"),
        ([Quantise(), Quantise()], "Quantise can't follow Quantise"),
        ([Prune(ratio=0.5), Quantise(), Distil(steps=1)], "step 3: Distil can't follow Quantise .step 2."),
        ([technique("Sparsify"), Distil(steps=1), technique("Factorise")], "step 3: .* dense, and the zeros are lost"),
        ([technique("Sparsify", pattern="2:4"), Prune(ratio=0.5)], "inputs that go shift the others. Put sparsify"),
        ([technique("Share"), Distil(steps=1)], "the shared values come apart"),
        ([technique("Share"), Quantise()], "'per': 'tensor'"),
        ([technique("Share"), Quantise(weight={"bits": 4, "per": "channel"})], "a scale for each channel"),
        (
            [technique("Share"), Quantise(weight={"per": "tensor"}, train={"steps": 3})],
            "where it trains, each weight moves by itself, .* Leave out its train",
        ),
        (
            [technique("Share"), Quantise(weight={"per": "tensor"}, layers={"conv1": {"per": "channel"}})],
            "a scale for each channel",
        ),
        ([technique("Exits"), technique("Share", train={"steps": 3})], "where they train, the answers"),
        ([technique("Gates"), Quantise(train={"steps": 3})], "where they train, the answers"),
        ([technique("Exits"), Prune(ratio=0.5)], "thresholds were chosen"),
        ([technique("Gates"), technique("Exits")], "thresholds were chosen"),
        ([technique("Tie"), technique("Factorise")], "what was tied comes apart"),
        ([technique("Sparsify"), technique("Tie")], "fewer of them"),
        ([Equalise(), Recalibrate()], "no statistics are left"),
    ],
)
def test_others_are_refused_and_told_why(chain: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_order(chain)
    assert "\n" not in str(caught.value)


def test_a_refused_pair_can_be_turned_around_or_is_two_of_a_kind() -> None:
    made = {name: technique(name) for name in names()}
    refused = [(a, b) for a, b in product(made, made) if refusal(made[a], made[b])]
    assert len(refused) > 30
    both = {(a, b) for a, b in refused if a != b and refusal(made[b], made[a])}
    assert both == {("Share", "Quantise"), ("Quantise", "Share"), ("Exits", "Gates"), ("Gates", "Exits")}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(torch.relu(self.conv1(x))).mean((2, 3))


@pytest.fixture
def setting() -> tuple[Graph, Context]:
    x = torch.randn(4, 3, 8, 8)
    model = Network().eval()
    return capture(model, x), Context(Task(model, x), calibrate=((x,),))


def test_nothing_is_done_before_all_is_checked(setting: tuple[Graph, Context], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(Quantise, "apply", lambda self, graph, context: done.append("Quantise"))
    steps = ({"technique": "Quantise"}, {"technique": "Prune", "ratio": 0.5})
    with pytest.raises(InputError, match="Prune can't follow Quantise"):
        apply_plan(setting[0], Plan(steps), setting[1])
    with pytest.raises(InputError, match="Prune can't follow Quantise"):
        plan_of([Quantise(), Prune(ratio=0.5)], *setting)
    assert done == []


def test_a_plan_is_resolved_on_what_the_steps_before_leave(setting: tuple[Graph, Context]) -> None:
    plan = plan_of([Prune(ratio=0.5, multiple=2), Prune(ratio=0.5, multiple=2), Quantise()], *setting)
    assert [step["technique"] for step in plan.steps] == ["Prune", "Prune", "Quantise"]
    first, second = (step["keep"]["conv1.weight:0"] for step in plan.steps[:2])
    assert (len(first), len(second)) == (8, 4)
    assert max(second) < 8


def test_a_technique_may_resolve_into_several(setting: tuple[Graph, Context], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Prune(keep={"conv1.weight:0": tuple(range(8))}), Prune(keep={"conv1.weight:0": tuple(range(4))})
    monkeypatch.setattr(Prune, "resolve", lambda self, graph, context: parts if self.ratio else self)
    plan = plan_of([Prune(ratio=0.75), Quantise()], *setting)
    assert [len(step.get("keep", {}).get("conv1.weight:0", ())) for step in plan.steps] == [8, 4, 0]
    assert apply_plan(setting[0], Plan(plan.steps[:2]), setting[1]).tensors()["conv1.weight"].shape[0] == 4


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for r in REFUSED:
        assert f"| {', '.join(r.before)} | {', '.join(r.after)} | {r.why} | {r.do} |" in text
