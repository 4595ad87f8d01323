"""The costs of a point are those of the network that its plan makes."""

from __future__ import annotations

import random

import pytest
import torch

from tests.pipeline.networks import small
from trimtab.compress.allocate import total
from trimtab.compress.plan import apply_plan, technique_of
from trimtab.core.context import Context
from trimtab.core.goal import Goal
from trimtab.core.plan import Plan
from trimtab.core.space import sample
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.space import STORED, Rest, Space, factors, shapes, space_of
from trimtab.pipeline.survey import asks_for_size
from trimtab.run.shapes import layers


@pytest.fixture(scope="module")
def made() -> tuple[Graph, Context, Space]:
    task = Task(small(), torch.randn(2, 1, 8, 8))
    graph = set_mode(capture(task.model, task.example), False)
    context = Context(task, teacher=graph, calibrate=((torch.randn(16, 1, 8, 8),),))
    return graph, context, space_of(graph, context)


def test_macs_of_a_point_are_those_of_its_network(made: tuple[Graph, Context, Space]) -> None:
    graph, context, space = made
    seconds = {(layer, p): {"latency": 1.0} for layer in shapes(space) for p in ("fp32", "int8")}
    costs = factors(space, seconds, Rest())
    source = random.Random(0)
    for _ in range(12):
        point = {axis.name: axis.index(sample(axis, source)) for axis in space.axes}
        steps = [s for s in space.steps(point) if s["technique"] != "Quantise"]
        left = layers(apply_plan(graph, Plan(tuple(steps)), context))
        assert total(costs, point, "macs") == sum(layer.macs for layer in left.values())
        assert total(costs, point, "latency") == len(left)


def test_macs_of_a_point_with_ranks_are_those_of_its_network(made: tuple[Graph, Context, Space]) -> None:
    graph, context, _ = made
    ranks = {"layer2.0.conv1": (8, 4), "layer2.1.conv2": (16,)}
    space = space_of(graph, context, ranks=ranks)
    seconds = {(layer, p): {"latency": 1.0} for layer in shapes(space) for p in ("fp32", "int8")}
    costs = factors(space, seconds, Rest())
    whole = {axis.name: 0 for axis in space.axes}
    low = whole | {f"Factorise:{name}": 1 for name in ranks}
    assert space.steps(low) == [
        {"technique": "Factorise", "ranks": {"layer2.0.conv1": 8, "layer2.1.conv2": 16}, "aware": True}
    ]
    # 16 channels at 8 x 8 to 32 at 4 x 4, and 32 to 32 at 4 x 4
    saved = 16 * (9 * 16 * 32 - 8 * (9 * 16 + 32)) + 16 * (9 * 32 * 32 - 16 * (9 * 32 + 32))
    assert total(costs, whole, "macs") - total(costs, low, "macs") == saved
    assert total(costs, low, "latency") == len(space.layers) + 2
    narrow = low | {axis.name: len(axis.choices) - 1 for axis in space.axes if axis.name.startswith("Prune:layer2")}
    source = random.Random(1)
    points = [{axis.name: axis.index(sample(axis, source)) for axis in space.axes} for _ in range(3)]
    for point in (low, narrow, *points):
        steps = [s for s in space.steps(point) if s["technique"] != "Quantise"]
        left = layers(apply_plan(graph, Plan(tuple(steps)), context))
        assert total(costs, point, "macs") == sum(layer.macs for layer in left.values())
        assert total(costs, point, "latency") == len(left)


def test_the_first_choices_are_the_network_as_it_is(made: tuple[Graph, Context, Space]) -> None:
    _, _, space = made
    assert space.plan({axis.name: 0 for axis in space.axes}).steps == ()


def test_a_kept_layer_has_no_axis() -> None:
    task = Task(small(), torch.randn(2, 1, 8, 8), keep=("layer1",))
    graph = set_mode(capture(task.model, task.example), False)
    names = [axis.name for axis in space_of(graph, Context(task, teacher=graph)).axes]
    assert any("layer2" in n for n in names)
    assert not any(n.startswith(("Prune:layer1", "RemoveBlocks:layer1")) for n in names)


def test_layers_by_hand(made: tuple[Graph, Context, Space]) -> None:
    graph, _, _ = made
    found = layers(graph)
    assert found["conv.weight"].macs == 9 * 16 * 64
    assert found["layer2.0.conv1.weight"].macs == 9 * 16 * 32 * 16
    assert found["depthwise.weight"].macs == 9 * 32 * 16
    assert found["linear.weight"].macs == 128


@pytest.mark.parametrize(
    ("goal", "asks"),
    [
        (Goal(), False),
        (Goal(at_most={"latency": 1e-3}), False),
        (Goal(minimise="size"), True),
        (Goal(at_most={"size": 1e5}), True),
        (Goal(at_least={"size_ratio": 8.0}), True),
    ],
)
def test_few_bits_are_surveyed_where_the_goal_asks_for_a_small_file_alone(goal: Goal, asks: bool) -> None:
    assert asks_for_size(goal) is asks


def test_few_bits_are_half_a_byte_and_as_fast_as_eight(made: tuple[Graph, Context, Space]) -> None:
    graph, context, plain = made
    space = space_of(graph, context, stored=STORED)
    names = [axis.name for axis in space.axes if axis.name.startswith("Quantise:")]
    assert names
    assert all(axis.choices == ("fp32", "int8", "int4") for axis in space.axes if axis.name in names)
    assert all("int4" not in axis.choices for axis in plain.axes)
    seconds = {
        (layer, p): {"latency": {"fp32": 3.0, "int8": 1.0}[p]} for layer in shapes(space) for p in ("fp32", "int8")
    }
    costs = factors(space, seconds, Rest())
    whole = {axis.name: 0 for axis in space.axes}
    weights = sum(layer.weights for layer in space.layers.values())
    for choice, size, latency in ((0, 4.0, 3.0), (1, 1.0, 1.0), (2, 0.5, 1.0)):
        point = whole | dict.fromkeys(names, choice)
        assert total(costs, point, "size") == size * weights
        assert total(costs, point, "latency") == latency * len(space.layers)


def test_a_point_with_few_bits_is_one_step_that_names_their_layers(made: tuple[Graph, Context, Space]) -> None:
    graph, context, _ = made
    space = space_of(graph, context, stored=STORED)
    point = {axis.name: 1 if axis.name.startswith("Quantise:") else 0 for axis in space.axes}
    assert space.steps(point) == [{"technique": "Quantise"}]
    mixed = point | {"Quantise:conv": 0, "Quantise:layer2.0.conv1": 2}
    few = {"layer2.0.conv1": {"bits": 4}}
    low = {"layers": few, "calibration": "mse", "correct": True}
    assert space.steps(mixed) == [{"technique": "Quantise", "skip": ["conv"], **low}]
    technique_of(space.steps(mixed)[0])
