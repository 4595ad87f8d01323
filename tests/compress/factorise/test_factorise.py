"""Factorise on whole networks: what it keeps, what it chooses, what it refuses, and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trimtab.compress import Factorise
from trimtab.compress.plan import apply_plan, recipe, resolved, step_of
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.count import total
from trimtab.graph.model import Graph
from trimtab.run.export import export_onnx
from trimtab.run.onnxruntime import OnnxRuntime


class Mixed(nn.Module):
    """A convolution, a grouped, a depthwise, a transposed one, a 1-d one, linear layers; two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.same = nn.Conv2d(16, 16, (3, 5), padding="same", bias=False)
        self.line = nn.Conv1d(16, 20, 3, padding=1)
        self.first, self.second = nn.Linear(20, 20), nn.Linear(20, 20)
        self.second.weight = self.first.weight
        self.head = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.wide(x)))
        y = torch.relu(self.up(torch.relu(self.grouped(y))))
        y = torch.relu(self.line(torch.relu(self.same(y)).flatten(2)))
        return self.head(torch.relu(self.second(torch.relu(self.first(y.mean(2))))))


FULL = {
    "svd": {"wide": 24, "same": 16, "line": 20, "head": 12},
    "spatial": {"wide": 12, "same": 48},
    "tucker": {"wide": [4, 24], "line": [16, 20]},
    "tt": {"wide": [4, 12, 24], "head": [4, 15]},
}


@pytest.fixture(scope="module")
def mixed() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(24, 4, 6, 6)
    graph = capture(model, x[:2])
    return graph, Context(Task(model, x[:2]), teacher=graph, calibrate=((x,),))


def close(found: Any, expected: Any, share: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("method", list(FULL))
def test_at_full_rank_the_network_computes_what_it_did(method: str, aware: bool, mixed: tuple[Graph, Context]) -> None:
    if method in ("tucker", "tt"):
        pytest.importorskip("tensorly")
    graph, context = mixed
    made = Factorise(method, ranks=FULL[method], aware=aware).apply(graph, context)  # type: ignore[arg-type]
    x = torch.randn(7, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        close(made(x), graph(x), 1e-5)
    names = made.tensors()
    assert all(
        f"{name}.weight" not in names and f"{name}.factors.0.weight" in names for name in FULL[method] if name != "head"
    )
    assert "grouped.weight" in names


@pytest.mark.parametrize("names", ["012", "210"])
def test_layers_in_a_row_are_all_replaced(names: str) -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 6)).eval(), torch.randn(4, 12)
    graph = capture(model, x[:2])
    full = {"0": 10, "1": 8, "2": 6}
    made = Factorise(ranks={n: full[n] for n in names}).apply(graph, Context(Task(model, x[:2])))
    assert not any(f"{n}.weight" in made.tensors() for n in names)
    with torch.no_grad():
        close(made(x), graph(x), 1e-5)


def test_layers_that_stay_whole_are_noted(mixed: tuple[Graph, Context]) -> None:
    notes = " ".join(Factorise(ranks={"wide": 8}).apply(*mixed).notes)
    assert "leaves grouped whole: a grouped convolution" in notes
    assert "leaves up whole: a transposed convolution" in notes
    assert "leaves first whole: its weight is read more than once" in notes


def test_only_layers_that_get_cheaper_are_taken(mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    for settings in ({"share": 0.6}, {"energy": 0.7}, {"rule": "vbmf"}):
        found = Factorise(**settings, multiple=1).resolve(graph, context)  # type: ignore[arg-type]
        assert found.ranks
        assert (found.energy, found.share, found.rule) == (None, None, None)
        assert total(found.apply(graph, context), 1).macs < total(graph, 1).macs
    assert Factorise(share=0.5, multiple=1, layers=("wide", "head"), skip=("head",)).resolve(graph, context).ranks == {
        # 36 places of 4 9 24 multiply-adds, half of which is 432 = 13 (36 + 24) - ...: at most 7 (36 + 24) = 420
        "wide": 7
    }


def test_a_plan_holds_ranks_only_and_replays(mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    (settled,) = resolved(recipe("factorise(energy=0.7, aware=True, multiple=1)"), graph, context)
    step = step_of(settled)
    assert set(step) == {"technique", "ranks", "aware"}
    made, again = (apply_plan(graph, Plan((step,)), context) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(made.tensors().values(), again.tensors().values(), strict=True))


def test_aware_factors_lose_less_of_the_outputs_than_plain_ones() -> None:
    # inputs that vary in two directions of eight much more than in the others, with a mean
    source = torch.Generator().manual_seed(5)
    layer = nn.Linear(8, 6)
    x = torch.randn(400, 8, generator=source) * torch.tensor([9.0, 5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]) + 3
    graph = capture(layer, x[:2])
    context = Context(Task(layer, x[:2]), calibrate=((x,),))
    with torch.no_grad():
        expected = graph(x[:256])
        plain, aware = (Factorise(ranks={"weight": 2}, aware=a).apply(graph, context)(x[:256]) for a in (False, True))
    assert isinstance(expected, Tensor)
    assert isinstance(plain, Tensor)
    assert isinstance(aware, Tensor)
    lost, best = float((plain - expected).square().sum()), float((aware - expected).square().sum())
    assert best < 0.02 * lost
    # the best that rank 2 can do: the outputs' variance beyond two principal directions
    values = np.linalg.svd((expected - expected.mean(0)).numpy(), compute_uv=False)
    assert best == pytest.approx(float((values[2:] ** 2).sum()), rel=0.05)
    close(aware.mean(0), expected.mean(0), 1e-4)


@pytest.mark.parametrize("method", ["spatial", "tucker", "cp", "tt"])
def test_refitted_factors_lose_less_of_the_outputs(method: str, mixed: tuple[Graph, Context]) -> None:
    if method != "spatial":
        pytest.importorskip("tensorly")
    _, context = mixed
    x = context.calibrate[0][0]
    first = capture(nn.Sequential(context.task.model.wide), x[:2])
    alone = Context(Task(context.task.model, x[:2]), calibrate=((torch.relu(x) + 1,),))
    with torch.no_grad():
        expected = first(torch.relu(x) + 1)
        errors = []
        for aware in (False, True):
            made = Factorise(method, ranks={"0": 4}, aware=aware).apply(first, alone)  # type: ignore[arg-type]
            errors.append(float((made(torch.relu(x) + 1) - expected).square().sum()))  # type: ignore[operator]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("settings", [{"ranks": {"wide": 3}}, {"energy": 0.8, "layers": ("wide",), "multiple": 1}])
def test_aware_looks_at_data_or_says_that_there_is_none(settings: dict[str, Any], mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    with pytest.raises(InputError, match="aware needs data: got none") as caught:
        Factorise(aware=True, **settings).apply(graph, replace(context, calibrate=()))
    assert "\n" not in str(caught.value)
    validating = replace(context, calibrate=(), validate=context.calibrate)
    made = Factorise(aware=True, **settings).apply(graph, validating)
    assert any("inputs of the validation data" in note for note in made.notes)


def test_sites_are_ranks_with_the_whole_layer_first(mixed: tuple[Graph, Context]) -> None:
    axes = {axis.name: axis for axis in Factorise(multiple=1).sites(*mixed)}
    assert set(axes) == {f"Factorise:{name}" for name in FULL["svd"]}
    assert all(axis.choices[0] is None and axis.ordered for axis in axes.values())
    assert list(axes["Factorise:wide"].choices[1:]) == sorted(axes["Factorise:wide"].choices[1:], reverse=True)
    two = {axis.name: axis for axis in Factorise("tucker", multiple=1).sites(*mixed)}
    assert all(len(choice) == 2 for choice in two["Factorise:wide"].choices[1:])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ranks": {"wide": 80}}, "Factorise: rank: wide: got 80, expected 1 to 24: its matrix is 24 x 36"),
        ({"ranks": {"wide": 0}}, "rank: wide: got 0"),
        ({"ranks": {"wide": 3.5}}, "ranks: wide: got 3.5, expected a whole number"),
        ({"ranks": {"wide": "8"}}, "ranks: wide: got '8', expected a whole number"),
        ({"ranks": {"wide": None}}, "ranks: wide: got None, expected a whole number"),
        ({"ranks": {"wide": True}}, "ranks: wide: got True, expected a whole number"),
        ({"method": "tucker", "ranks": {"wide": [4, 2.5]}}, r"ranks: wide: got \[4, 2.5\], expected a whole number"),
        ({"ranks": {"wide": [3, 4]}}, r"ranks: wide: got \[3, 4\], expected 1 of them"),
        (
            {"method": "spatial", "ranks": {"head": 3}},
            "Factorise: spatial: head: got a linear layer, expected a 2-d conv",
        ),
        ({"method": "tucker", "ranks": {"head": 3}}, "tucker: head: got a linear layer"),
        ({"method": "spatial", "layers": ["line"], "share": 0.5}, "spatial: line: got a 1-d convolution"),
        ({"method": "tucker", "ranks": {"wide": [4, 24, 1]}}, "expected 2 of them: its matrices are 4 x 216, 24 x 36"),
        ({"method": "tt", "ranks": {"wide": [1, 12, 24]}}, r"got \[1, 12, 24\], expected \[1, 3, 9\]"),
        ({"ranks": {"grouped": 3}}, "grouped: got a layer that stays whole: a grouped convolution"),
        ({"ranks": {"nowhere": 3}}, "got 'nowhere', expected one of wide, same, line, head"),
        ({"share": 0.5, "layers": ["nowhere"]}, "layers: got 'nowhere'"),
        ({"share": 0.5, "skip": ["nowhere"]}, "skip: got 'nowhere'"),
        ({}, "got none of them, expected one of ranks, energy, share and rule"),
        ({"share": 0.5, "energy": 0.5}, "got energy and share"),
        ({"share": 1.0}, "share: got 1.0"),
        ({"energy": 0.0}, "energy: got 0.0"),
        ({"method": "spatial", "share": 0.5, "layers": ["same"], "skip": ["same"]}, "got no layer that suits"),
        ({"method": "cp", "energy": 0.9}, "energy: got method cp, expected ranks or share"),
        ({"multiple": 0, "share": 0.5}, "multiple: got 0"),
    ],
)
def test_bad_settings_name_layer_got_and_expected(
    settings: dict[str, Any], said: str, mixed: tuple[Graph, Context]
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Factorise(**settings).resolve(*mixed)
    assert "\n" not in str(caught.value)


def test_where_no_layer_would_be_cheaper_all_stay_whole(mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    found = Factorise(energy=1.0).resolve(graph, context)
    assert found.ranks == {}
    made = found.apply(graph, context)
    assert made.tensors().keys() == graph.tensors().keys()
    assert any("all stay whole" in note for note in made.notes)


def test_a_kept_layer_stays_whole(mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    kept = Context(Task(context.task.model, context.task.example, keep=("wide",)))
    assert "wide" not in (Factorise(share=0.5, multiple=1).resolve(graph, kept).ranks or {})
    with pytest.raises(InputError, match=r"wide: got a layer that keep="):
        Factorise(ranks={"wide": 3}).resolve(graph, kept)


def test_a_quantised_network_is_refused(mixed: tuple[Graph, Context]) -> None:
    graph, context = mixed
    with pytest.raises(InputError, match="quantised already"):
        Factorise(share=0.5).apply(apply_plan(graph, Plan(({"technique": "Quantise"},)), context), context)


AFTER: list[tuple[str, Callable[[Graph], dict[str, Any]]]] = [
    ("prune", lambda g: {"technique": "Prune", "ratio": 0.5, "multiple": 2}),
    ("quantise", lambda g: {"technique": "Quantise"}),
    ("again", lambda g: {"technique": "Factorise", "ranks": {"wide.factors.0": 4}}),
]


@pytest.mark.parametrize(("name", "step"), AFTER, ids=[name for name, _ in AFTER])
def test_what_follows_works_and_exports(
    name: str, step: Callable[[Graph], dict[str, Any]], mixed: tuple[Graph, Context], tmp_path: Path
) -> None:
    graph, context = mixed
    first = {"technique": "Factorise", "method": "svd", "ranks": {"wide": 8, "same": 8, "line": 6, "head": 4}}
    low = apply_plan(graph, Plan((first,)), context)
    made = apply_plan(low, Plan((step(low),)), context)
    if name == "prune":
        assert made.tensors()["wide.factors.0.weight"].shape[0] < 8
        assert total(made, 1).macs < total(low, 1).macs
    if name == "quantise":
        assert made.tensors()["wide.factors.0.weight"].dtype == torch.int8
    x = torch.randn(3, 4, 6, 6)
    export_onnx(made, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = made(x)
    assert isinstance(expected, Tensor)
    found = OnnxRuntime().load(tmp_path / "model.onnx").run([x.numpy()])[0]
    close(torch.from_numpy(found), expected, 0.05 if name == "quantise" else 1e-4)


def test_transformers_layers_of_other_forms() -> None:
    class Words(nn.Module):
        """x @ W + b as GPT-2 writes it, a linear layer on a sequence, and one whose batch is the second side."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16, 24)), nn.Parameter(torch.randn(24))
            self.up, self.down = nn.Linear(24, 30), nn.Linear(30, 12)

        def forward(self, x: Tensor) -> Tensor:
            t, c = x.shape[1:]
            y = torch.addmm(self.bias, x.reshape(-1, c), self.weight).reshape(-1, t, 24)
            return self.down(torch.relu(self.up(y)).transpose(0, 1)).transpose(0, 1)

    torch.manual_seed(0)
    model, x = Words().eval(), torch.randn(3, 5, 16)
    graph = capture(model, x[:2])
    context = Context(Task(model, x[:2]), calibrate=((x,),))
    made = Factorise(ranks={"weight": 16, "up": 24, "down": 12}).apply(graph, context)
    assert "weight" not in made.tensors()
    with torch.no_grad():
        close(made(x), graph(x), 1e-5)
    pytest.importorskip("tensorly")
    made = Factorise("tt", ranks={"weight": 8, "up": 12}).apply(graph, context)
    with torch.no_grad():
        assert made(torch.randn(4, 5, 16)).shape == (4, 5, 12)  # type: ignore[union-attr]
    assert "down" not in (Factorise("tt", share=0.9, multiple=1).resolve(graph, context).ranks or {})
    with pytest.raises(InputError, match="down: got a linear layer whose batch is not its first side"):
        Factorise("tt", ranks={"down": 2}).resolve(graph, context)
