"""Schedules, the trainings before a cut, and that a killed run goes on: numbers by hand, steps and weights alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.compress.networks import Residual, image_batch
from trimtab.compress import Distil, Prune
from trimtab.compress.plan import plan_of, resolved, step_of, technique_of
from trimtab.compress.prune.rules import Slimming, Soft, Softly, silence, silent
from trimtab.compress.prune.schedule import shares
from trimtab.compress.technique import Technique
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import Store
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.coupling import Member
from trimtab.graph.model import Graph
from trimtab.train import loop

TRAIN = {"steps": 2, "lr": 0.02, "alpha": 1.0, "precision": "fp32", "channels_last": False}


@pytest.fixture(scope="module")
def setting() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model = Residual(16).eval()
    train = Arrays(image_batch(32), torch.arange(32) % 5, batch=16, shuffle=True)
    task = Task(model, image_batch(), train=train, loss=nn.functional.cross_entropy)
    return capture(model, image_batch()), Context(task)


def same(a: Graph, b: Graph) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def done(steps: tuple[Technique, ...], graph: Graph, context: Context) -> Graph:
    for technique in steps:
        graph = technique_of(step_of(technique)).apply(graph, context)
    return graph


def test_shares_by_hand() -> None:
    assert shares("once", 0.5, 1) == (0.5,)
    assert shares("iterative", 0.75, 2) == pytest.approx((0.5, 0.75))
    assert shares("cubic", 0.8, 4) == pytest.approx((0.8 - 0.8 * 0.421875, 0.7, 0.7875, 0.8))
    assert shares("iterative", 0.9, 3)[-1] == shares("cubic", 0.9, 3)[-1] == 0.9


def test_a_schedule_comes_to_steps_that_replay_alike(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    technique = Prune(ratio=0.75, multiple=1, schedule="iterative", rounds=2, train=TRAIN)
    steps = resolved(technique, graph, context)
    assert [type(s).__name__ for s in steps] == ["Prune", "Distil", "Prune", "Distil"]
    assert [len(units) for s in steps if isinstance(s, Prune) for units in (s.keep or {}).values()] == [8, 4]
    assert all("ratio" not in step_of(s) and "schedule" not in step_of(s) for s in steps)
    assert same(done(steps, graph, context), technique.apply(graph, context))


def test_scores_are_taken_anew_in_each_round(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    trained = {**TRAIN, "steps": 6, "lr": 0.5}
    found = resolved(Prune(ratio=0.75, multiple=1, schedule="iterative", rounds=2, train=trained), graph, context)
    bare = resolved(Prune(ratio=0.75, multiple=1, schedule="iterative", rounds=2), graph, context)
    assert [type(s).__name__ for s in bare] == ["Prune", "Prune"]
    assert bare[0].keep == found[0].keep  # type: ignore[attr-defined]
    assert bare[1].keep != found[2].keep  # type: ignore[attr-defined]


@pytest.mark.parametrize("score", ["l2", "taylor_gate"])
def test_rounds_that_change_no_width_are_left_out(score: Any, setting: tuple[Graph, Context]) -> None:
    found = resolved(Prune(ratio=0.5, score=score, multiple=8, schedule="cubic", rounds=3, train=TRAIN), *setting)
    assert [type(s).__name__ for s in found] == ["Prune", "Distil"]  # 0.35, 0.48 and 0.5 of 16: 8, 8 and 8 units


def test_a_cost_is_a_share_of_the_original_in_every_round(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    technique = Prune(ratio=0.75, multiple=1, allocate="params", schedule="iterative", rounds=2, floor=0.0)
    whole = sum(p.numel() for p in graph.net.parameters())
    left = []
    now = graph
    for step in resolved(technique, graph, context):
        now = step.apply(now, context)
        left.append(sum(p.numel() for p in now.net.parameters()) / whole)
    assert 0.4 < left[0] <= 0.5
    assert 0.17 < left[1] <= 0.25


def test_with_a_store_nothing_is_trained_twice(
    setting: tuple[Graph, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, context = setting[0], replace(setting[1], store=Store(tmp_path))
    count = []
    advance = loop.advance
    monkeypatch.setattr(loop, "advance", lambda *args: count.append(1) or advance(*args))
    steps = resolved(Prune(ratio=0.75, multiple=1, schedule="cubic", rounds=2, train=TRAIN), graph, context)
    assert len(count) == 2  # the second round's training has no scores behind it
    done(steps, graph, context)
    assert len(count) == 4
    done(steps, graph, context)
    assert len(count) == 4


def test_a_killed_run_goes_on_to_the_same_network(setting: tuple[Graph, Context], tmp_path: Path) -> None:
    graph, context = setting
    technique = Prune(ratio=0.75, multiple=1, schedule="iterative", rounds=2, train={**TRAIN, "steps": 4})
    expected = plan_of([technique], graph, context)

    def kill(what: str, done: int, total: int) -> None:
        if what == "train" and done == 2:
            raise KeyboardInterrupt

    kept = replace(context, store=Store(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        plan_of([technique], graph, replace(kept, progress=kill))
    again = plan_of([technique], graph, kept)
    assert again == expected
    assert plan_of([technique], graph, kept) == expected
    steps = tuple(technique_of(step) for step in expected.steps)
    assert same(done(steps, graph, kept), done(steps, graph, context))


def test_slimming_adds_its_gradient_to_the_scales(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    training = Distil(**{**TRAIN, "steps": 1, "lr": 1.0})  # type: ignore[arg-type]
    scales = ("bn1.weight", "bn2.weight")
    plain = training.fit(graph, context, ()).tensors()
    slim = training.fit(graph, context, (Slimming(scales, 0.1),)).tensors()
    # the first of one-cycle's rates is 0.04 lr, and Nesterov's first step 1.9 gradients; all scales are positive
    for name in scales:
        assert torch.allclose(plain[name] - slim[name], torch.tensor(0.04 * 1.9 * 0.1), atol=1e-6)
    assert torch.equal(plain["conv1.weight"], slim["conv1.weight"])


def test_slimming_then_a_cut_by_scales_replays(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    before = {**TRAIN, "rule": "slimming", "strength": 0.01, "steps": 3}
    technique = Prune(ratio=0.5, multiple=1, score="batch_norm", before=before)
    (step,) = resolved(technique, graph, context)
    assert step.before == {"every": 100, **before}  # type: ignore[attr-defined]
    assert same(done((step,), graph, context), technique.apply(graph, context))
    bare = capture(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1)).eval(), image_batch())
    with pytest.raises(InputError, match="slimming: got a network without batch norms"):
        Prune(ratio=0.5, before=before).apply(bare, context)


def test_the_least_are_silenced_where_they_are_read() -> None:
    first = torch.tensor([[1.0, -1.0], [3.0, 4.0], [0.0, 1.0]])
    second = torch.tensor([[2.0, 1.0, -3.0]])
    made = Member("first.weight", 0, ((0,), (1,), (2,)))
    read = Member("second.weight", 1, ((0,), (1,), (2,)))
    tensors = {"first.weight": first.clone(), "second.weight": second.clone()}
    # norms 2^.5, 5, 1 over their mean 2.47 and 2, 1, 3 over 2: the first unit has the least mean
    silence([Softly("first.weight:0", 2, (made, read), (read,))], tensors, [tensors])
    assert torch.equal(tensors["second.weight"], torch.tensor([[0.0, 1.0, -3.0]]))
    assert torch.equal(tensors["first.weight"], first)
    assert silent(tensors, [read]).tolist() == [True, False, False]


SEEN: list[list[int]] = []


@dataclass(frozen=True)
class Watch:
    """Notes after each step how many inputs of the second convolution and of the linear layer are zero."""

    def begin(self, training: Any, recipe: Any) -> dict[str, torch.Tensor]:
        return {}

    def penalty(self, training: Any, state: Any, recipe: Any) -> None: ...

    def after(self, training: Any, state: Any, recipe: Any) -> None:
        convolution, linear = training.tensors["conv2.weight"], training.tensors["linear.weight"]
        SEEN.append([int((convolution.sum((0, 2, 3)) == 0).sum()), int((linear.sum(0) == 0).sum())])

    def end(self, training: Any, state: Any) -> None: ...


def softly(graph: Graph, context: Context, keep: int) -> Softly:
    units = tuple((i,) for i in range(16))
    read = Member("conv2.weight", 1, units), Member("linear.weight", 1, units)
    return Softly("conv1.weight:0", keep, (Member("conv1.weight", 0, units), *read), read)


def test_silenced_units_grow_again(setting: tuple[Graph, Context]) -> None:
    graph, context = setting
    SEEN.clear()
    training = Distil(**{**TRAIN, "steps": 3})  # type: ignore[arg-type]
    result = training.fit(graph, context, (Soft((softly(graph, context, 6),), 2), Watch()))
    assert SEEN == [[0, 0], [10, 10], [0, 0]]
    assert int((result.tensors()["linear.weight"].sum(0) == 0).sum()) == 10


@pytest.mark.parametrize("ema", [None, 0.9])
def test_soft_pruning_ends_in_a_network_that_the_cut_does_not_change(
    setting: tuple[Graph, Context], ema: float | None
) -> None:
    graph, context = setting
    before = {**TRAIN, "rule": "soft", "every": 2, "steps": 5, "ema": ema}
    technique = Prune(ratio=0.5, multiple=1, before=before)
    steps = resolved(technique, graph, context)
    assert len(steps) == 1
    (units,) = (steps[0].keep or {}).values()  # type: ignore[attr-defined]
    assert len(units) == 8
    small = technique.apply(graph, context)
    assert same(done(steps, graph, context), small)
    training = Distil(**{**TRAIN, "steps": 5, "ema": ema})  # type: ignore[arg-type]
    soft = training.fit(graph, context, (Soft((softly(graph, context, 8),), 2),))
    with torch.no_grad():
        x = image_batch(4)
        assert torch.allclose(soft(x), small(x), atol=1e-5)  # type: ignore[arg-type]
