"""Swap: sites found, alternatives trained and stored, and networks that go on as any others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.compress.swappable import Sequence, Wide
from trimtab.compress.plan import resolved, step_of, technique_of
from trimtab.compress.prune.channels import Prune
from trimtab.compress.quantise.technique import Quantise
from trimtab.compress.swap.choose import cheapest, losses, prices, programme
from trimtab.compress.swap.learn import features
from trimtab.compress.swap.library import library
from trimtab.compress.swap.sites import sites
from trimtab.compress.swap.technique import Swap
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.store import Store
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.save import load, save
from trimtab.hardware.layer import Layer
from trimtab.run.export import export_onnx
from trimtab.run.shapes import calls
from trimtab.train.distil import distillation_loss
from trimtab.train.recipe import Distillation

STEPS = {"steps": 3}


def setting(model: nn.Module, x: torch.Tensor, keep: tuple[str, ...] = ()) -> tuple[Graph, Context]:
    graph = capture(model, x[:2])
    data = Arrays(x, None, batch=16, shuffle=True)
    task = Task(model, x[:2], train=data, keep=keep)
    return graph, Context(task, teacher=graph, calibrate=((x[:16],),))


@pytest.fixture(scope="module")
def wide() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    return setting(Wide().eval(), torch.randn(64, 3, 12, 12))


@pytest.fixture(scope="module")
def sequence() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    return setting(Sequence().eval(), torch.randn(64, 24, 16))


def test_sites_of_a_convolutional_network(wide: tuple[Graph, Context]) -> None:
    found = {s.name: s for s in sites(wide[0])}
    assert {n: s.part for n, s in found.items()} == {
        "stem": "convolution",
        "five": "convolution",
        "seven": "convolution",
        "conv1": "convolution",
        "conv2": "convolution",
        "block": "block",
        "last": "convolution",
        "hidden": "feedforward",
    }
    assert found["block"].kinds == ("convolution", "identity")
    assert found["stem"].kinds == ("separable",)
    assert found["five"].kinds == ("separable", "grouped", "bottleneck", "stacked", "strips", "identity")
    assert "identity" not in found["seven"].kinds
    assert found["hidden"].kinds == ("narrow", "narrower")


def test_what_the_task_keeps_is_no_site() -> None:
    graph, context = setting(Wide().eval(), torch.randn(4, 3, 12, 12), keep=("five", "conv*"))
    names = {axis.name for axis in Swap(error=0.5).sites(graph, context)}
    assert "Swap:seven" in names
    assert not names & {"Swap:five", "Swap:conv1", "Swap:conv2"}


@pytest.mark.parametrize("how", ["whole", "hand", "causal"])
def test_sites_of_a_transformer(how: str) -> None:
    graph = capture(Sequence(how).eval(), torch.randn(2, 24, 16))
    found = [s for s in sites(graph) if s.part == "attention"]
    assert [s.name for s in found] == ["layers.0", "layers.1"]
    assert {s.causal for s in found} == {how == "causal"}
    assert found[0].kinds == (("pooling",) if how == "causal" else ("pooling", "linear"))
    assert sum(s.part == "feedforward" for s in sites(graph)) == 2


def test_features_are_what_the_network_computes(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    x = context.calibrate[0][0]
    found = {s.name: (inputs, end) for s, inputs, end in features(graph, sites(graph), (x,))}
    model = context.task.model
    with torch.no_grad():
        one = torch.relu(model.bn(model.stem(x)))
        torch.testing.assert_close(found["stem"][1], one)
        torch.testing.assert_close(found["five"][0][0], one)
        torch.testing.assert_close(found["five"][1], torch.relu(model.five(one)))


CHOICES = {
    "wide": [
        {"stem": "separable"},
        {"five": "stacked", "seven": "strips", "last": "grouped"},
        {"five": "identity", "seven": "separable", "conv1": "bottleneck"},
        {"five": "bottleneck", "seven": "separable", "last": "separable", "hidden": "narrow"},
    ],
    "sequence": [
        {"layers.0": "pooling", "layers.1": "linear"},
        {"layers.0": "linear", "layers.1/feedforward": "narrower"},
    ],
}


@pytest.mark.parametrize(("which", "blocks"), [(w, b) for w, some in CHOICES.items() for b in some])
def test_a_swapped_network_runs_saves_exports_and_is_compressed_further(
    which: str, blocks: dict[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    graph, context = request.getfixturevalue(which)
    made = Swap(blocks, train=STEPS).apply(graph, context)
    x = context.calibrate[0][0]
    with torch.no_grad():
        before, after = graph(x), made(x)
        assert after.shape == before.shape
        assert bool(after.isfinite().all())
        assert any(".swapped." in name for name in made.tensors()) or set(blocks.values()) == {"identity"}
        save(made, tmp_path)
        assert torch.equal(load(tmp_path)(x), after)
    export_onnx(made, tmp_path / "model.onnx")
    cut = Prune(ratio=0.5, multiple=2).apply(made, context)
    assert cut(x).shape == before.shape
    export_onnx(Quantise().apply(made, context), tmp_path / "int8.onnx")


def test_what_a_swap_leaves_behind_is_gone(sequence: tuple[Graph, Context]) -> None:
    made = Swap({"layers.0": "pooling"}, train=None).apply(*sequence)
    names = set(made.tensors())
    assert not names & {"layers.0.q.weight", "layers.0.k.weight"}
    assert {"layers.0.v.weight", "layers.1.q.weight"} <= names


def test_an_identity_is_the_network_without_the_part(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    made = Swap({"five": "identity"}, train=None).apply(graph, context)
    model, x = context.task.model, context.calibrate[0][0]
    with torch.no_grad():
        y = torch.relu(model.seven(torch.relu(model.bn(model.stem(x)))))
        z = torch.relu(y + model.bn2(model.conv2(torch.relu(model.bn1(model.conv1(y))))))
        expected = model.linear(torch.relu(model.hidden(torch.relu(model.last(z)).mean((2, 3)))))
        torch.testing.assert_close(made(x), expected)


def test_training_lowers_the_error_and_one_alone_learns_what_it_learns_among_others(
    wide: tuple[Graph, Context],
) -> None:
    graph, context = wide
    swap = Swap(error=0.5, train={"steps": 30, "lr": 0.01})
    every = swap.library(graph, context, swap.choices(graph, context))
    for key in (("five", "separable"), ("seven", "bottleneck"), ("hidden", "narrow")):
        assert every[key].error < 0.9 * every[key].began, key
    one = next(c for c in swap.choices(graph, context) if (c[0].name, c[1]) == ("five", "separable"))
    alone = swap.library(graph, context, [one])["five", "separable"]
    assert alone.error == every["five", "separable"].error
    for a, b in zip(alone.module.parameters(), every["five", "separable"].module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stopped_training_goes_on_and_a_finished_one_is_not_repeated(
    wide: tuple[Graph, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, context = wide
    swap = Swap({"five": "separable", "last": "separable"}, train={"steps": 6})
    plain = swap.apply(graph, context).tensors()

    def stop(what: str, done: int, total: int) -> None:
        if what == "train alternatives" and done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.compress.swap.learn.CHECKPOINT_SECONDS", 0.0)
    stored = replace(context, store=Store(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        swap.apply(graph, replace(stored, progress=stop))
    assert any("unfinished" in p.name for p in tmp_path.iterdir())
    steps: list[int] = []
    done = swap.apply(graph, replace(stored, progress=lambda what, i, n: steps.append(i)))
    assert steps == [4, 5, 6]
    assert all(torch.equal(v, done.tensors()[k]) for k, v in plain.items())
    assert not any("unfinished" in p.name for p in tmp_path.iterdir())
    again = swap.apply(graph, replace(stored, progress=lambda what, i, n: pytest.fail("trained again")))
    assert all(torch.equal(v, again.tensors()[k]) for k, v in plain.items())


def test_what_is_stored_of_other_calibration_data_is_not_taken(wide: tuple[Graph, Context], tmp_path: Path) -> None:
    graph, context = wide
    stored = replace(context, store=Store(tmp_path))
    other = replace(context, calibrate=((10 * context.calibrate[0][0] + 1,),))  # of the same shape
    swap = Swap(error=0.5, train=None)
    few = [c for c in swap.choices(graph, context) if c[0].name == "five"]
    for each in (stored, replace(stored, calibrate=other.calibrate)):
        every, fresh = swap.library(graph, each, few), swap.library(graph, replace(each, store=None), few)
        assert {k: a.error for k, a in every.items()} == {k: a.error for k, a in fresh.items()}
        # the same alternatives as before, so that only the data tell what is stored apart
        assert losses(graph, fresh, each) == losses(graph, fresh, replace(each, store=None))


def test_resolve_settles_an_error_into_kinds(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    (settled,) = resolved(Swap(error=0.3, train=STEPS), graph, context)
    assert isinstance(settled, Swap)
    assert settled.error is None
    assert settled.blocks
    assert technique_of(step_of(settled)) == settled
    every = library(graph, settled._chosen(graph, context), context, settled.recipe())
    assert all(a.error <= 0.3 for a in every.values())


def test_of_a_block_and_its_parts_the_way_that_saves_more_is_taken() -> None:
    torch.manual_seed(0)
    graph, context = setting(Wide().eval(), torch.randn(16, 3, 12, 12))
    swap = Swap(error=0.5, train=None)
    every = swap.library(graph, context, swap.choices(graph, context))
    block = next(s for s in sites(graph) if s.part == "block")
    price = prices(graph, every, context)
    free = {k: replace(a, error=0.0) for k, a in every.items()}
    chosen = cheapest(free, 0.1, price)
    assert chosen[block.name] == "identity"
    assert not {"conv1", "conv2"} & set(chosen)
    dear = {k: replace(a, error=1.0 if k[0] == block.name else 0.0) for k, a in every.items()}
    assert {"conv1", "conv2"} <= set(cheapest(dear, 0.1, price))


def test_what_is_slower_on_the_target_is_not_taken(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    swap = Swap(error=0.99, train=None, kinds=("separable", "stacked"))

    def times(shapes: list[Layer]) -> dict[Layer, float]:
        return {s: 1.0 if s.groups > 1 else s.macs * 1e-9 for s in shapes}

    assert "separable" in (swap.resolve(graph, context).blocks or {}).values()
    assert "separable" not in (swap.resolve(graph, replace(context, times=times)).blocks or {}).values()


def test_the_loss_of_one_swap_is_that_of_the_network_with_it(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    swap = Swap(error=0.5, train=None)
    wanted = {("five", "separable"), ("conv2", "separable"), ("seven", "strips"), ("block", "identity")}
    every = swap.library(graph, context, [c for c in swap.choices(graph, context) if (c[0].name, c[1]) in wanted])
    found = losses(graph, every, context)
    assert set(found) == wanted
    x = context.calibrate[0][0]
    with torch.no_grad():
        for name, kind in wanted:
            made = Swap({name: kind}, train=None).apply(graph, context)
            expected = distillation_loss(made(x), graph(x), None, Distillation(temperature=1.0))
            assert found[name, kind] == pytest.approx(float(expected), rel=1e-3, abs=1e-7)


def test_a_share_is_reached_with_the_least_loss(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    swap = Swap(share=0.6, train=None, kinds=("separable", "identity", "convolution"))
    every = swap.library(graph, context, swap.choices(graph, context))
    loss = losses(graph, every, context)
    whole = programme(graph, every, loss, prices(graph, every, context))
    assert whole.whole == sum(call.layer.macs for call in calls(graph))
    blocks = swap.resolve(graph, context).blocks
    assert blocks is not None
    assert whole.cost(blocks) <= 0.6 * whole.whole
    made = Swap(blocks, train=None).apply(graph, context)
    assert whole.cost(blocks) == sum(call.layer.macs for call in calls(made))
    # by hand: every combination
    names = list(whole.kinds)
    best = min(
        sum(loss[n, k] for n, k in some.items())
        for pick in itertools.product(*((None, *whole.kinds[n]) for n in names))
        if whole.cost(some := {n: k for n, k in zip(names, pick, strict=True) if k}) <= 0.6 * whole.whole
        and not any(whole.around.get(n) in some for n in some)
    )
    assert sum(loss[n, k] for n, k in blocks.items()) == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "none of them"),
        ({"error": 0.1, "blocks": {}}, "one of blocks, error and share"),
        ({"error": 2.0}, "share above 0"),
        ({"share": 0.01, "train": None}, "no kinds here cost less"),
        ({"blocks": {"nowhere": "separable"}}, "no such site"),
        ({"blocks": {"seven": "identity"}}, "separable or"),
        ({"error": 0.1, "kinds": ["cheap"]}, "some of separable"),
        ({"error": 0.1, "train": {"alpha": 0.5}}, "steps, optimiser"),
        ({"error": 0.1, "train": {"step": 5}}, "steps"),
    ],
)
def test_bad_settings_are_one_line(wide: tuple[Graph, Context], settings: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        technique_of({"technique": "Swap", **settings}).apply(*wide)
    assert "\n" not in str(caught.value)


def test_sites_that_lie_in_each_other_are_refused(wide: tuple[Graph, Context]) -> None:
    graph, context = wide
    block = next(s for s in sites(graph) if s.part == "block")
    with pytest.raises(InputError, match="a part of"):
        Swap({"conv1": "separable", block.name: "identity"}, train=None).apply(graph, context)


def test_without_data_there_is_one_sentence() -> None:
    x = torch.randn(2, 3, 12, 12)
    model = Wide().eval()
    graph = capture(model, x)
    context = Context(Task(model, x), teacher=graph)
    with pytest.raises(InputError, match="no data to learn from"):
        Swap({"five": "separable"}).apply(graph, context)
    with pytest.raises(InputError, match="no data to measure errors on"):
        Swap(error=0.5, train=None).apply(graph, context)
    assert Swap({"five": "separable"}, train=None).apply(graph, context)(x).shape == (2, 4)
