"""Ternary and binary weights: the papers' equations by hand, their gradients, and their form in integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.compress import Quantise
from trimtab.compress.quantise.low_bits import low_levels, low_weights_of, narrowed
from trimtab.core.context import Context
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph

WEIGHT = torch.tensor([[1.0, -0.1, 0.5, -2.0], [0.0, 0.3, -0.3, 0.3]])


def linear(weight: Tensor) -> tuple[Graph, Context]:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    example = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    return capture(model, example), Context(Task(model, example), calibrate=((example,),))


def test_ternary_by_hand() -> None:
    # thresholds 0.7 * 0.9 = 0.63 and 0.7 * 0.225 = 0.1575; scales (1 + 2) / 2 and 0.3
    levels, scale = low_levels(WEIGHT, "ternary", 0)
    assert levels.tolist() == [[1, 0, 0, -1], [0, 1, -1, 1]]
    assert scale.tolist() == pytest.approx([1.5, 0.3])
    # one scale: threshold 0.7 * 0.5625 = 0.39375 keeps 1, 0.5 and 2
    levels, scale = low_levels(WEIGHT, "ternary", None)
    assert levels.tolist() == [[1, 0, 1, -1], [0, 0, 0, 0]]
    assert scale.tolist() == pytest.approx([3.5 / 3])


def test_binary_by_hand() -> None:
    levels, scale = low_levels(WEIGHT, "binary", 0)
    assert levels.tolist() == [[1, -1, 1, -1], [1, 1, -1, 1]]
    assert scale.tolist() == pytest.approx([0.9, 0.225])


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_scales_are_the_best_for_their_levels(seed: int, binary: bool) -> None:
    """Both papers derive a as the least squares of |w - a b|; no other scale has less error."""
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    levels, scale = low_levels(weight, "binary" if binary else "ternary", 0)
    best = (levels * weight).sum(1) / levels.square().sum(1)
    assert torch.allclose(scale, best)
    assert set(levels.unique().tolist()) <= ({-1.0, 1.0} if binary else {-1.0, 0.0, 1.0})


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_integers_are_levels_and_scales(kind: str) -> None:
    graph, context = linear(WEIGHT)
    technique = Quantise(layers={"*": {"kind": kind}}, activation=None)
    found = technique.apply(graph, context)
    levels, scale = low_levels(WEIGHT, kind, 0)
    name = next(n for n, value in found.tensors().items() if value.dtype == torch.int8 and value.ndim == 2)
    assert torch.equal(found.tensors()[name], levels.to(torch.int8))
    assert torch.allclose(found.tensors()[f"{name}_scale"], scale)
    (node,) = found.nodes(torch.ops.quantized_decomposed.dequantize_per_channel.default)
    assert node.args[3:6] == (0, -1, 1)


def gradient(kind: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the weight gets, and the gradient of its rounded form."""
    graph, context = linear(weight)
    prepared = Quantise(layers={"*": {"kind": kind}}, activation=None).prepare(graph, context)
    (fake,) = low_weights_of(prepared)
    x, direction = torch.randn(4, weight.shape[1]), torch.randn(4, weight.shape[0])
    (prepared(x) * direction).sum().backward()  # type: ignore[operator]
    found = prepared.tensors()[fake.name].grad
    assert found is not None
    return found, direction.t() @ x


def test_gradient_of_ternary_passes_straight_through() -> None:
    found, upstream = gradient("ternary", WEIGHT)
    assert torch.allclose(found, upstream, atol=1e-6)


def test_gradient_of_binary_is_clipped_and_reaches_the_scale() -> None:
    found, upstream = gradient("binary", WEIGHT)
    levels, scale = low_levels(WEIGHT, "binary", 0)
    through_scale = (upstream * levels).sum(1, keepdim=True) * torch.sign(WEIGHT) / 4
    through_sign = upstream * scale[:, None] * (WEIGHT.abs() <= 1)
    assert torch.allclose(found, through_scale + through_sign, atol=1e-5)


def test_narrow_types_saturate() -> None:
    wide = torch.tensor([1e6, -1e6, 3.3])
    assert narrowed(wide, "fp8").tolist() == [448.0, -448.0, 3.25]
    assert narrowed(wide, "fp16")[:2].tolist() == [65504.0, -65504.0]
    assert torch.isfinite(narrowed(wide * 1e30, "bf16")).all()
