"""Learned scales: the paper's gradient by hand, live batch norm folded exactly, and training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compress.networks import Residual, image_batch
from trimtab.compress import Quantise
from trimtab.compress.quantise.insert import WeightRange, rows_of, tensors_of, weights_of
from trimtab.compress.quantise.learned import learned_start, learned_tensor
from trimtab.compress.quantise.ranges import Affine, Histogram, affine, affine_error, weight_error, weight_scales
from trimtab.core.context import Context
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode

_ATEN = torch.ops.aten


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def captured(model: nn.Module, example: Tensor) -> tuple[Graph, Context]:
    model.eval()
    return capture(model, example), Context(Task(model, example), calibrate=((example,),))


def lsq(v: Tensor, s: Tensor, low: float, high: float) -> Tensor:
    """Equation 3 of Esser et al. (2020), written out."""
    ratio = v / s
    return torch.where(ratio <= low, low, torch.where(ratio >= high, high, torch.round(ratio) - ratio))


@pytest.mark.parametrize("per", ["channel", "tensor", "group"])
def test_gradient_of_a_weights_scale_is_the_papers(per: str) -> None:
    x = torch.randn(4, 8)
    graph, context = captured(nn.Linear(8, 3, bias=False), x)
    prepared = Quantise(
        weight={"bits": 3, "per": per} | ({"group": 4} if per == "group" else {}), activation=None, calibration="mse"
    ).prepare(graph, context)
    (fake,) = weights_of(prepared)
    scale, weight = prepared.tensors()[fake.scale], prepared.tensors()[fake.name]
    ratios = torch.tensor([-9.0, -3.6, -2.4, -0.7, 0.2, 1.4, 2.9, 4.2])  # some out of range
    with torch.no_grad():
        spaced = ratios[torch.randint(0, 8, (3, 8))]
        weight.copy_((rows_of(spaced, fake) * scale[:, None]).reshape(3, 8))
    direction = torch.randn(4, 3)
    (prepared(x) * direction).sum().backward()  # type: ignore[operator]
    upstream = direction.t() @ x  # [3, 8]
    rows = rows_of(weight.detach(), fake)
    by_hand = (rows_of(upstream, fake) * lsq(rows, scale.detach()[:, None], -3, 3)).sum(1)
    by_hand /= (rows.shape[1] * 3) ** 0.5
    assert scale.grad is not None
    assert torch.allclose(scale.grad, by_hand, rtol=1e-4, atol=1e-6)
    inside = rows.abs() <= scale.detach()[:, None] * 3
    assert weight.grad is not None
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.allclose(rows_of(weight.grad, fake), rows_of(upstream, fake) * inside, atol=1e-6)


def test_gradient_of_an_activations_scale_is_the_papers() -> None:
    x = torch.rand(4, 8)
    graph, context = captured(nn.Sequential(nn.ReLU(), nn.Linear(8, 3, bias=False)), x)
    prepared = Quantise(activation={"bits": 2}).prepare(graph, context)
    fake = next(fake for fake in tensors_of(prepared) if fake.source.name == "relu")
    scale = prepared.tensors()[str(fake.scale)]
    with torch.no_grad():
        x = torch.tensor([0.1, 0.7, 1.2, 2.6, 2.9, 3.6, 5.0, 9.0])[torch.randint(0, 8, (4, 8))] * scale
    direction = torch.randn(4, 3)
    (prepared(x) * direction).sum().backward()  # type: ignore[operator]
    (weight,) = weights_of(prepared)
    how = prepared.tensors()
    step = how[weight.scale].detach()[:, None]
    rounded = torch.round(how[weight.name].detach() / step).clamp(-127, 127) * step
    by_hand = (direction @ rounded * lsq(x, scale.detach(), 0, 3)).sum() / (8 * 3) ** 0.5
    assert scale.grad is not None
    assert torch.allclose(scale.grad, by_hand, rtol=1e-3)


def test_scales_start_as_in_the_paper_where_that_is_better() -> None:
    weight = torch.randn(4, 1000) * torch.tensor([[1.0], [2.0], [0.1], [5.0]])
    for bits in (2, 3, 8):
        top = 2 ** (bits - 1) - 1
        how = WeightRange(weight_scales(weight, top, 0, "minmax"), 0, -top, top)
        start = learned_start(weight, how).scale
        paper = 2 * weight.abs().mean(1) / top**0.5
        assert torch.allclose(start, paper if bits < 8 else how.scale)
        assert bool((weight_error(weight, start, top) <= weight_error(weight, how.scale, top)).all())


def test_activations_start_as_in_the_paper_where_that_is_better() -> None:
    x = torch.randn(100_000).relu()
    found = Histogram(0.0, float(x.max()), torch.histc(x, 2048, 0.0, float(x.max())).double())
    for bits in (2, 8):
        how = affine(0.0, float(x.max()), bits)
        start = learned_tensor(found, how, bits)
        paper = 2 * float(x.mean()) / (2**bits - 1) ** 0.5
        assert start.scale == pytest.approx(paper if bits == 2 else how.scale, rel=2e-3)
        assert affine_error(found, start) <= affine_error(found, how)
    assert learned_tensor(Histogram(0.0, 0.0, torch.ones(4)), Affine(1.0, 0, 0, 3), 2) == Affine(1.0, 0, 0, 3)


def lively() -> nn.Module:
    """A network whose norms do something, with negative, tiny and zero factors."""
    model = Residual()
    for norm in (model.bn1, model.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        with torch.no_grad():
            norm.weight[:2] = torch.tensor([0.0, -1e-7])
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"weight": {"bits": 8}},
        {"weight": {"bits": 3}},
        {"weight": {"kind": "ternary"}, "layers": {"conv1": {"kind": "ternary"}}},
        {"weight": {"kind": "binary"}, "layers": {"conv1": {"kind": "binary"}}},
    ],
)
def test_batch_norm_is_folded_into_scales_exactly(settings: dict[str, Any]) -> None:
    graph, context = captured(lively(), image_batch())
    technique = Quantise(**settings, activation=None, train={"steps": 1})
    prepared = technique.prepare(graph, context)
    assert len(list(prepared.nodes(_ATEN.batch_norm.default))) == 2
    converted = technique.convert(prepared)
    assert not list(converted.nodes(_ATEN.batch_norm.default))
    # the channel of a zero factor has the least scale that runtimes take, which a binary weight must fill
    limit = 1e-5 if settings["weight"].get("kind") != "binary" else 2e-3
    wanted, found = prepared(image_batch()), converted(image_batch())
    assert torch.allclose(wanted, found, atol=limit)  # type: ignore[arg-type]
    assert converted.tensors()["conv1.weight"].dtype == torch.int8


@torch.no_grad()
def test_a_single_scale_has_its_norm_folded_first() -> None:
    graph, context = captured(lively(), image_batch())
    technique = Quantise(weight={"per": "tensor"}, train={"steps": 1})
    prepared = technique.prepare(graph, context)
    assert not list(prepared.nodes(_ATEN.batch_norm.default))
    ops = torch.ops.quantized_decomposed
    assert not list(technique.convert(prepared).nodes(ops.dequantize_per_channel_group.default))


def test_training_moves_scales_and_statistics_without_decay() -> None:
    graph, context = captured(lively(), image_batch())
    data = Arrays(image_batch(64), torch.arange(64) % 5, batch=32, shuffle=True)
    task = Task(context.task.model, image_batch(), train=data, loss=nn.functional.cross_entropy)
    context = Context(task, teacher=graph, calibrate=context.calibrate)
    train = {"steps": 12, "lr": 0.02, "alpha": 1.0, "channels_last": False}
    technique = Quantise(weight={"bits": 3}, activation={"bits": 4}, train=train)
    prepared = technique.prepare(graph, context)
    from trimtab.compress.quantise.technique import training_of

    trained = training_of(train).apply(prepared, context)
    before, after = prepared.tensors(), trained.tensors()
    scales = [f.scale for f in weights_of(prepared)] + [str(f.scale) for f in tensors_of(prepared)]
    for name in scales:
        assert before[name].ndim == 1  # what the loop trains without weight decay
        assert not torch.equal(before[name], after[name])
        assert bool((after[name] > 0).all())
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    set_mode(trained, False)
    with torch.no_grad():
        wanted, found = trained(image_batch()), technique.convert(trained)(image_batch())
        plain = Quantise(weight={"bits": 3}, activation={"bits": 4}).apply(graph, context)

    # where a value lies on the border of two levels, folding may send it to the other one
    assert float((wanted - found).norm() / wanted.norm()) < 0.02  # type: ignore[operator, union-attr]

    def loss(network: Graph) -> float:
        return sum(float(nn.functional.cross_entropy(network(x), y)) for x, y in data)  # type: ignore[arg-type]

    with torch.no_grad():
        assert loss(technique.convert(trained)) < loss(plain)


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.relu6(self.a(x)))


def test_a_scale_that_grew_beyond_relu6_is_cut_back() -> None:
    graph, context = captured(Clipped(), image_batch() * 20)
    technique = Quantise()
    prepared = technique.prepare(graph, context)
    fake = next(f for f in tensors_of(prepared) if "hardtanh" in f.source.name or "relu6" in f.source.name)
    with torch.no_grad():
        prepared.tensors()[str(fake.scale)].fill_(0.1)  # 25.5 at the top
    ops = torch.ops.quantized_decomposed
    scales = [float(str(node.args[1])) for node in technique.convert(prepared).nodes(ops.quantize_per_tensor.default)]
    assert any(scale == pytest.approx(6 / 255) for scale in scales)
    assert 0.1 not in scales
