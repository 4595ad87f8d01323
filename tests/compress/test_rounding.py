"""Rounding: AdaRound, BRECQ, and what they are made of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compress.networks import Inception, Residual, Tagger, image_batch
from trimtab.compress import Quantise
from trimtab.compress.quantise.adaround import Descent, exponent, reconstructed, rectified, regulariser, unrectified
from trimtab.compress.quantise.brecq import block_units
from trimtab.compress.quantise.rounding import Rounding, rounded, rounding_of
from trimtab.compress.quantise.staged import Staged, chunks
from trimtab.compress.quantise.units import layer_units, layers
from trimtab.core.context import Context, quiet
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph

Made = tuple[Graph, Graph, list[tuple[Tensor, ...]]]


def prepared(model: nn.Module, inputs: tuple[Tensor, ...], **settings: Any) -> Made:
    """A network of weights in few bits, prepared; the same in floating point; and its calibration inputs."""
    graph = capture(model.eval(), tuple(i[:2] for i in inputs))
    names = [spec.name for spec in graph.inputs]
    batch = dict(zip(names, inputs, strict=True)) if len(names) > 1 else (inputs[0],)
    context = Context(Task(model, tuple(i[:2] for i in inputs)), calibrate=(batch,))
    settings = {"weight": {"bits": 3, "per": "channel"}, **settings}
    return Quantise(**settings).prepare(graph, context), for_inference(graph), [inputs]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def residual() -> Made:
    return prepared(Residual(), (image_batch(64),))


def output_error(made: Made, graph: Graph) -> float:
    _, folded, inputs = made
    with torch.no_grad():
        return float((graph(*inputs[0]) - folded(*inputs[0])).square().mean())  # type: ignore[operator]


def test_rectified_sigmoid_and_regulariser_by_hand() -> None:
    v = torch.tensor([0.0, 2.0, 9.0, -9.0], dtype=torch.float64)
    wanted = torch.tensor([0.5, 1.2 / (1 + math.exp(-2)) - 0.1, 1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(rectified(v), wanted, atol=1e-12)
    h = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(rectified(unrectified(h)), h, atol=1e-12)
    # 1 - |2 h - 1|^2 is 0, 0.75 and 1 at h = 0, 0.25 and 0.5
    assert float(regulariser(torch.tensor([0.0, 0.25, 0.5, 1.0]), 2.0)) == pytest.approx(1.75)


def test_the_exponent_falls_from_its_first_value_to_its_second_after_the_warm_up() -> None:
    descent = Descent(warmup=0.2, beta=(20.0, 2.0))
    found = [exponent(done, descent) for done in (0.0, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([20, 20, 11, 2])


def test_adaround_comes_near_the_best_rounding_of_a_small_layer() -> None:
    inputs = torch.randn(256, 3) @ torch.randn(3, 6) + 0.5 * torch.randn(256, 6)
    made = prepared(nn.Linear(6, 24), (inputs,), activation=None)
    graph, folded, data = made
    (layer,) = layers(graph)
    weight = graph.tensors()["weight"].detach()
    moments = inputs.T @ inputs / len(inputs)

    def loss(levels: Tensor) -> Tensor:
        change = levels * layer.step - weight
        return ((change @ moments) * change).sum(1)  # [24]

    floor = torch.floor(weight / layer.step)
    every = [
        loss((floor + torch.tensor(up)).clamp(layer.low, layer.high)) for up in itertools.product((0.0, 1.0), repeat=6)
    ]
    best = torch.stack(every).amin(0).sum()
    result = rounded("adaround", graph, folded, data, quiet)
    learnt = loss(result.tensors()["weight"].detach() / layer.step).sum()
    near = loss(layer.nearest(weight)).sum()
    assert best < 0.7 * near
    assert learnt < best + 0.4 * (near - best)


@pytest.mark.parametrize("method", ["adaround", "brecq", "gptq"])
@pytest.mark.parametrize("per", [{"per": "channel"}, {"per": "tensor"}, {"per": "group", "group": 4}])
def test_weights_come_to_lie_on_the_grid_and_outputs_nearer(method: str, per: dict[str, Any]) -> None:
    made = prepared(Residual(), (image_batch(64),), weight={"bits": 3, **per})
    graph, folded, data = made
    before = {name: value.clone() for name, value in graph.tensors().items()}
    options = {} if method == "gptq" else {"iterations": 80}
    result = rounded({"method": method, **options}, graph, folded, data, quiet)
    assert output_error(made, result) < 0.9 * output_error(made, graph)
    for layer in layers(result):
        value = result.tensors()[layer.weight].detach()
        assert torch.equal(layer.nearest(value) * layer.step, value)
        up = torch.floor(before[layer.weight] / layer.step).clamp(layer.low, layer.high)
        assert method == "gptq" or bool(((value / layer.step - up).round() <= 1).all())
    assert all(torch.equal(before[name], value) for name, value in graph.tensors().items())


def test_the_same_seed_gives_the_same_weights(residual: Made) -> None:
    settings = {"method": "brecq", "iterations": 20}
    results = [rounded(settings, *residual, quiet, seed).tensors() for seed in (1, 1, 2)]
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    assert any(not torch.equal(value, results[2][name]) for name, value in results[0].items())


def test_gradients_need_not_be_on_outside(residual: Made) -> None:
    with torch.no_grad():
        result = rounded({"method": "adaround", "iterations": 50}, *residual, quiet)
    assert output_error(residual, result) < output_error(residual, residual[0])


def test_nearest_stays_where_nothing_is_better() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        # on the grid already: rounding to nearest makes no error at all
        layer.weight.copy_(torch.tensor([[3.0, -1.0, 2.0, 0.0], [1.0, 3.0, -3.0, 2.0]]))
    graph, folded, data = prepared(layer, (torch.randn(64, 4),), activation=None)
    result = rounded({"method": "adaround", "iterations": 30}, graph, folded, data, quiet)
    assert torch.equal(result.tensors()["weight"], layer.weight)
    assert any("Rounded to nearest" in note for note in result.notes)


def test_progress_counts_the_blocks(residual: Made) -> None:
    seen: list[tuple[str, int, int]] = []
    rounded({"method": "brecq", "iterations": 1}, *residual, lambda *step: seen.append(step))
    assert seen == [("reconstruct", i, 3) for i in range(4)]


class Resnet(nn.Module):
    """Two residual blocks, the second with a convolution as its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.short = nn.Conv2d(4, 8, 1, 2)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.stem(x), inplace=True)
        x = nn.functional.relu(x + self.b(nn.functional.relu(self.a(x), inplace=True)), inplace=True)
        x = torch.relu(self.d(torch.relu(self.c(x))) + self.short(x))
        return self.linear(x.mean((2, 3)))


def test_blocks_lie_between_the_places_that_one_tensor_crosses() -> None:
    graph, *_ = prepared(Resnet(), (image_batch(8),))
    found = block_units(graph, layers(graph))
    names = [[layer.weight.split(".")[0] for layer in unit.layers] for unit in found]
    assert names == [["stem"], ["a", "b"], ["c", "d", "short"], ["linear"]]
    assert [unit.end for unit in found] == ["relu_", "relu__2", "relu_1", "linear"]
    assert [len(unit.layers) for unit in layer_units(graph, layers(graph))] == [1] * 7


def test_blocks_of_branches_that_join_and_of_two_outputs() -> None:
    graph, *_ = prepared(Inception(), (image_batch(8),))
    found = block_units(graph, layers(graph))
    assert [[layer.weight for layer in unit.layers] for unit in found] == [
        ["a.weight"],
        ["b.weight"],
        ["after.weight"],
        ["linear.weight"],
    ]


@pytest.mark.parametrize("method", ["adaround", "brecq", "gptq"])
def test_a_network_that_works_in_place_and_has_a_shortcut(method: str) -> None:
    made = prepared(Resnet(), (image_batch(64),))
    options = {} if method == "gptq" else {"iterations": 60}
    result = rounded({"method": method, **options}, *made, quiet)
    assert output_error(made, result) < output_error(made, made[0])


@pytest.mark.parametrize("method", ["adaround", "brecq", "gptq"])
def test_a_transformer_with_two_inputs(method: str) -> None:
    tokens = torch.randint(20, (32, 6))
    made = prepared(Tagger(), (tokens, torch.rand(32, 6, 1) + 0.5), activation=None)
    options = {} if method == "gptq" else {"iterations": 60}
    result = rounded({"method": method, **options}, *made, quiet)
    assert output_error(made, result) < output_error(made, made[0])


def test_a_staged_run_gives_the_graphs_values_and_forgets_them() -> None:
    graph = for_inference(capture(Resnet().eval(), (image_batch(2),)))
    data = image_batch(70)
    parts = chunks(graph, [(data[:40],), (data[40:],)], 64, seed=3)
    assert [len(part[0]) for part in parts] == [32, 32]
    state = Staged(graph, parts, ["relu__2"])
    with torch.no_grad():
        state.advance(len(state.nodes) - 1)
        wanted = [graph(*part) for part in parts]
    held = {node.name for node in state.values[0]}
    assert held == {"relu__2", "linear"}
    assert all(torch.equal(a, b) for a, b in zip(state.take("linear"), wanted, strict=True))
    assert state.take("relu__2")[0].shape == (32, 4, 8, 8)
    assert "relu__2" not in {node.name for node in state.values[0]}


def test_running_a_block_again_does_not_change_what_it_reads() -> None:
    graph, _, data = prepared(Resnet(), (image_batch(32),))
    (unit,) = block_units(graph, layers(graph))[1:2]
    state = Staged(graph, chunks(graph, data, 32, 0))
    state.advance(state.place[state.named[unit.layers[0].node]])
    nodes = state.behind(unit.end)
    with torch.no_grad():
        first, second = state.run(0, nodes, {}), state.run(0, nodes, {})
    assert torch.equal(first, second)


def test_settings_of_rounding() -> None:
    assert rounding_of("gptq") == Rounding("gptq")
    assert rounding_of({"method": "brecq", "iterations": 500, "samples": 64}) == Rounding("brecq", 500, 64)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("best", "nearest or adaround or brecq or gptq"),
        ({"method": "brecq", "iterations": 0}, "iterations: got 0, expected 1 or more"),
        ({"method": "brecq", "samples": -1}, "samples: got -1, expected 1 or more"),
        ({"method": "brecq", "steps": 3}, "unknown setting 'steps'"),
        ({"method": "brecq", "iterations": 1.5}, "iterations: got 1.5, expected a whole number"),
    ],
)
def test_wrong_settings_of_rounding(value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rounding_of(value)


def test_a_learnt_rounding_can_be_run_with_other_settings(residual: Made) -> None:
    graph, folded, data = residual
    units = block_units(graph, layers(graph))

    def error(rate: float) -> float:
        parts = chunks(graph, data, 64, 0)
        result = reconstructed(graph, folded, units, parts, Descent(iterations=100, rate=rate), quiet)
        return output_error(residual, result)

    assert error(0.01) < error(1e-5)


@pytest.mark.parametrize("rounding", [{"method": "brecq", "iterations": 20}, "gptq"])
def test_conversion_takes_the_levels_that_were_chosen(rounding: Any) -> None:
    data = image_batch(64)
    graph = capture(Resnet().eval(), (data[:2],))
    context = Context(Task(nn.Identity(), data[:2]), calibrate=((data,),))
    technique = Quantise(weight={"bits": 4}, rounding=rounding, correct=True)
    found, nearest = technique.finished(graph, context), Quantise(weight={"bits": 4}).apply(graph, context)
    result = technique.convert(found.prepared)
    for layer in layers(found.prepared):
        levels = result.tensors()[layer.weight]
        assert torch.equal(levels * layer.step, found.prepared.tensors()[layer.weight])
        assert torch.equal(result.tensors()[layer.weight + "_scale"], nearest.tensors()[layer.weight + "_scale"])
        assert not torch.equal(levels, nearest.tensors()[layer.weight])
    with torch.no_grad():
        assert torch.allclose(result(data), found.prepared(data), atol=1e-4)
