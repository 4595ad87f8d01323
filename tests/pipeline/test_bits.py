"""The costs of bits against hand-made networks, and the allocation against all there are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.networks import small
from trimtab.compress.plan import technique_of
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.pipeline.bits import MEASURES, by_hessian, by_loss, by_sqnr, hutchinson
from trimtab.pipeline.mixed import mixed, mixed_plan
from trimtab.pipeline.sensitivity import rounded_weight


def hadamard(size: int) -> Tensor:
    """Rows of signs whose mean x x^T is the identity."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made


def white() -> tuple[Graph, Context, Tensor]:
    """y = w x with one output and inputs of unit covariance: every cost is ||Q(w) - w||^2 up to a factor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(16, 1, bias=False))
    graph = set_mode(capture(network, hadamard(16)[:2]), False)
    task = Task(network, hadamard(16)[:2])
    context = Context(task, teacher=graph, calibrate=(hadamard(16),))
    return graph, context, graph.tensors()["0.weight"].detach()


def test_the_trace_of_a_diagonal_hessian_takes_one_probe() -> None:
    a, b = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    found = hutchinson(lambda: (weights * a**2).sum() + (5 * b**2).sum(), [a, b], 1, generator)
    assert found == pytest.approx([12.0, 20.0])


def test_the_trace_of_a_tiny_network_is_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
    shapes = [(4, 3), (2, 4)]
    sizes = [math.prod(s) for s in shapes]
    flat = torch.randn(sum(sizes), generator=generator)

    def loss(values: Tensor) -> Tensor:
        first, second = (p.reshape(s) for p, s in zip(values.split(sizes), shapes, strict=True))
        return (torch.tanh(x @ first.T) @ second.T - y).square().mean()

    exact = torch.autograd.functional.hessian(loss, flat)
    blocks = [float(part.sum()) for part in exact.diag().split(sizes)]
    parts = [p.clone().reshape(s).requires_grad_() for p, s in zip(flat.split(sizes), shapes, strict=True)]
    probes = 3000
    found = hutchinson(lambda: loss(torch.cat([p.flatten() for p in parts])), parts, probes, generator)
    error = 2**0.5 * float(exact.norm()) / probes**0.5  # of one standard deviation, at most
    assert found == pytest.approx(blocks, abs=4 * error)
    assert abs(blocks[0]) > 8 * error  # else the bound would say nothing


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_costs_of_a_linear_layer_on_white_inputs_are_its_rounding_error(bits: int) -> None:
    graph, context, weight = white()
    error = float((rounded_weight(weight, bits) - weight).square().sum())
    assert by_loss(graph, context, ["0"], [bits])["0"] == pytest.approx((error,), rel=1e-3)
    assert by_hessian(graph, context, ["0"], [bits])["0"] == pytest.approx((2 * error,), rel=1e-3)
    assert by_sqnr(graph, context, ["0"], [bits])["0"] == pytest.approx(
        (error / float(weight.square().sum()),), rel=1e-3
    )


def test_a_rounded_weight_has_few_levels_and_no_more_error_than_min_max() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    for bits in (2, 3, 4, 8):
        coarse = rounded_weight(weight, bits)
        assert max(len(channel.unique()) for channel in coarse) <= 2**bits - 1
        step = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1) / (2 ** (bits - 1) - 1)
        plain = (weight / step).round() * step
        assert (coarse - weight).square().sum() <= (plain - weight).square().sum() * (1 + 1e-6)


@pytest.fixture(scope="module")
def three() -> tuple[Graph, Context]:
    """Three layers of different sizes behind one another."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 3)
        ).eval()
    x = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    graph = set_mode(capture(network, x[:2]), False)
    return graph, Context(Task(network, x[:2]), teacher=graph, calibrate=(x,))


@pytest.mark.parametrize("sensitivity", list(MEASURES))
def test_the_allocation_is_the_best_of_all(three: tuple[Graph, Context], sensitivity: str) -> None:
    graph, context = three
    layers, choices = ["0", "2", "5"], (2, 4, 8)
    costs = MEASURES[sensitivity](graph, context, layers, choices)
    counts = [graph.tensors()[f"{name}.weight"].numel() for name in layers]
    allowed = 4.0 * sum(counts)
    every = [
        (sum(costs[name][choices.index(b)] for name, b in zip(layers, bits, strict=True)), bits)
        for bits in itertools.product(choices, repeat=3)
        if sum(n * b for n, b in zip(counts, bits, strict=True)) <= allowed
    ]
    found = mixed(graph, context, choices, 4.0, sensitivity)  # type: ignore[arg-type]
    chosen = tuple(found[name]["bits"] for name in layers)
    assert sum(n * b for n, b in zip(counts, chosen, strict=True)) <= allowed
    assert sum(costs[name][choices.index(b)] for name, b in zip(layers, chosen, strict=True)) == pytest.approx(
        min(every)[0], rel=2e-3
    )


def test_all_layers_of_a_residual_network_have_bits_of_the_average() -> None:
    network = small()
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    plan = mixed_plan(Task(network, x[:2], calibrate=[x]), 4.0, sensitivity="sqnr", settings={"rounding": "nearest"})
    technique_of(plan.steps[0])
    layers = plan.steps[0]["layers"]
    sizes = {name: network.get_submodule(name).weight.numel() for name in layers}
    assert len(layers) == 11
    assert sum(sizes[name] * layers[name]["bits"] for name in layers) <= 4.0 * sum(sizes.values())
    assert len({settings["bits"] for settings in layers.values()}) > 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"choices": (1, 4)}, "numbers of bits from 2 to 8"),
        ({"choices": ()}, "numbers of bits from 2 to 8"),
        ({"bits": 1.5}, "an average of 2 or more"),
        ({"sensitivity": "magic"}, "loss, sqnr, hessian"),
    ],
)
def test_wrong_settings_are_told(three: tuple[Graph, Context], settings: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        mixed(*three, **settings)  # type: ignore[arg-type]
