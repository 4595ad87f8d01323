"""Schemes: every form of weights and activations keeps its laws, and converts to what was prepared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.compress.networks import Residual, image_batch
from trimtab.compress import Quantise
from trimtab.compress.plan import recipe
from trimtab.compress.quantise.insert import WeightRange, levels, rows_of, spread, tensors_of, weights_of
from trimtab.compress.quantise.low_bits import low_weights_of
from trimtab.compress.quantise.ranges import weight_scales
from trimtab.compress.quantise.scheme import WeightScheme, layer_schemes
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.run.overflow import support_here


class Dense(nn.Module):
    """Three linear layers, of inputs that 8 divides, 8 does not divide, and 8 divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def captured(model: nn.Module, example: Tensor) -> tuple[Graph, Context]:
    model.eval()
    return capture(model, example), Context(Task(model, example), calibrate=((example,),))


@pytest.fixture(scope="module")
def residual() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    return captured(Residual(), image_batch())


@pytest.fixture(scope="module")
def dense() -> tuple[Graph, Context]:
    torch.manual_seed(0)
    return captured(Dense(), torch.randn(16, 16))


def stored(graph: Graph, name: str) -> Tensor:
    """A converted weight's values."""
    tensors = graph.tensors()
    level, scale = tensors[name].float(), tensors[f"{name}_scale"]
    if scale.ndim == 2:
        return (level.reshape(*scale.shape, -1) * scale[..., None]).reshape(level.shape)
    return level * scale.reshape(-1, *[1] * (level.ndim - 1))


@given(st.integers(2, 8), st.sampled_from(["channel", "tensor", "group"]), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_weights_come_back_within_half_a_step(bits: int, per: str, seed: int, clipped: bool) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-2, 2, 6)[:, None]
    top, group = 2 ** (bits - 1) - 1, 4 if per == "group" else 0
    axis = None if per == "tensor" else 0
    scale = weight_scales(weight.reshape(-1, group) if group else weight, top, axis, "mse" if clipped else "minmax")
    how = WeightRange(scale, axis, -top, top, group)
    found, step = levels(weight, scale, how), spread(scale, weight, how)
    assert found.abs().max() <= top
    inside = weight.abs() <= step * top
    assert clipped or inside.sum() == weight.numel() or bool((weight.abs() <= step * top * 1.0001).all())
    assert bool((((found * step - weight).abs() <= step * 0.50001) | ~inside).all())
    assert torch.equal(found[weight > step * top], torch.full_like(found[weight > step * top], top))
    assert rows_of(weight, how).shape[0] == len(scale)


SCHEMES: list[dict[str, Any]] = [
    *({"weight": {"bits": bits}} for bits in range(2, 9)),
    {"weight": {"bits": 3, "per": "tensor"}, "activation": {"bits": 4}},
    {"weight": {"bits": 4}, "activation": None},
    {"weight": {"kind": "ternary"}},
    {"weight": {"kind": "ternary", "per": "tensor"}, "layers": {"*": {"kind": "ternary"}}},
    {"weight": {"kind": "binary"}, "activation": None},
    {"weight": {"kind": "fp16"}, "activation": None},
    {"weight": {"kind": "bf16"}, "activation": None},
    {"weight": {"kind": "fp8"}, "activation": None},
    {"layers": {"conv1": {"kind": "fp16"}, "conv2": {"bits": 2}}},
    {"activation": {"bits": 8, "dynamic": True}},
    {"calibration": "average"},
    {"calibration": "entropy"},
]


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_converted_computes_what_was_prepared(residual: tuple[Graph, Context], scheme: dict[str, Any]) -> None:
    graph, context = residual
    technique = Quantise(**scheme)
    prepared = technique.prepare(graph, context)
    converted = technique.convert(prepared)
    # the linear layer's bias is rounded to 32 bits at its scale, and straight-through sums round; all else is equal
    scale = converted.tensors().get("linear.bias_scale", torch.zeros(1))
    limit = 1e-5 + float(scale.max()) / 2
    assert torch.allclose(converted(image_batch()), prepared(image_batch()), atol=limit)  # type: ignore[arg-type]
    assert not weights_of(converted)
    assert not low_weights_of(converted)
    assert not tensors_of(converted)


@torch.no_grad()
@pytest.mark.parametrize("bits", range(2, 9))
def test_levels_have_the_bits_asked_for(residual: tuple[Graph, Context], bits: int) -> None:
    converted = Quantise(weight={"bits": bits}, activation={"bits": bits}).apply(*residual)
    top = min(2 ** (bits - 1) - 1, support_here(None).top)
    for name in ("conv1.weight", "conv2.weight", "linear.weight"):
        level = converted.tensors()[name]
        assert level.dtype == torch.int8
        assert int(level.abs().max()) == top
    ends = {node.args[4] for node in converted.nodes(torch.ops.quantized_decomposed.quantize_per_tensor.default)}
    assert ends == {255, 2**bits - 1}  # the network's input has 8 bits


@torch.no_grad()
def test_error_falls_with_every_bit(residual: tuple[Graph, Context]) -> None:
    graph, context = residual
    wanted = graph(image_batch())
    errors = [
        float((Quantise(weight={"bits": b}, activation=None).apply(graph, context)(image_batch()) - wanted).norm())  # type: ignore[operator]
        for b in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)


@torch.no_grad()
def test_groups_have_scales_of_their_own(dense: tuple[Graph, Context]) -> None:
    graph, context = dense
    found = Quantise(weight={"bits": 4, "per": "group", "group": 8}, activation=None).apply(graph, context)
    assert found.tensors()["first.weight_scale"].shape == (12, 2)
    assert found.tensors()["third.weight_scale"].shape == (4, 1)
    assert found.tensors()["second.weight_scale"].shape == (8,)
    assert "Quantise scales second by channel: [8, 12] has no groups of 8." in found.notes
    weight = graph.tensors()["first.weight"]
    step = weight.reshape(12, 2, 8).abs().amax(-1) / 7
    assert torch.allclose(found.tensors()["first.weight_scale"], step)
    gap = (stored(found, "first.weight") - weight).abs().reshape(12, 2, 8)
    assert bool((gap <= step[..., None] * 0.50001).all())


def test_single_layers_have_settings_of_their_own(dense: tuple[Graph, Context]) -> None:
    found = Quantise(weight={"bits": 4}, layers={"*": {"bits": 3}, "second": {"bits": 2}}).apply(*dense).tensors()
    assert [int(found[f"{name}.weight"].abs().max()) for name in ("first", "second", "third")] == [3, 1, 3]


def test_settings_of_layers_go_over_those_of_weights() -> None:
    schemes, notes = layer_schemes(
        {"kind": "ternary"}, {"b": {"bits": 4}, "c": {"per": "tensor"}}, ["a", "b", "c", "d"]
    )
    assert schemes == {
        "a": WeightScheme(),
        "b": WeightScheme(bits=4),
        "c": WeightScheme("ternary", per="tensor"),
        "d": WeightScheme(),
    }
    assert len(notes) == 2
    schemes, _ = layer_schemes({"bits": 4, "per": "group", "group": 16}, {"b": {"kind": "binary"}}, ["a", "b"])
    assert schemes == {"a": WeightScheme(bits=4, per="group", group=16), "b": WeightScheme("binary")}


@torch.no_grad()
def test_weights_alone_need_no_data_and_leave_activations(residual: tuple[Graph, Context]) -> None:
    graph, context = residual
    found = Quantise(weight={"bits": 8}, activation=None).apply(graph, Context(context.task))
    assert not any("random" in note for note in found.notes)
    assert not list(found.nodes(torch.ops.quantized_decomposed.quantize_per_tensor.default))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "step"), [("fp16", 2.0**-11), ("bf16", 2.0**-8), ("fp8", 2.0**-4)])
def test_narrow_weights_are_the_nearest_of_their_type(residual: tuple[Graph, Context], kind: str, step: float) -> None:
    graph, context = residual
    found = Quantise(weight={"kind": kind}, activation=None).apply(graph, context).tensors()["linear.weight"]
    weight = graph.tensors()["linear.weight"]
    normal = weight.abs() > 2.0**-6
    assert bool(((found - weight).abs() <= weight.abs() * step)[normal].all())
    assert not torch.equal(found, weight)
    held = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[kind]
    assert torch.equal(found.to(held).float(), found)


def test_narrow_weights_are_not_for_integer_activations(residual: tuple[Graph, Context]) -> None:
    with pytest.raises(InputError, match="kind fp16: got integer activations, expected activation None"):
        Quantise(weight={"kind": "fp16"}).apply(*residual)


@torch.no_grad()
def test_dynamic_ranges_are_those_of_the_batch(dense: tuple[Graph, Context]) -> None:
    graph, context = dense
    technique = Quantise(activation={"bits": 8, "dynamic": True})
    prepared = technique.prepare(graph, Context(context.task))
    converted = technique.convert(prepared)
    assert [fake.scale for fake in tensors_of(prepared)] == [None] * 3
    for factor in (1e-3, 1.0, 1e3):
        x = torch.randn(5, 16) * factor
        wanted, found = graph(x), converted(x)
        assert isinstance(wanted, Tensor)
        assert isinstance(found, Tensor)
        assert float((found - wanted).norm() / wanted.norm()) < 0.02
        assert torch.allclose(prepared(x), found, atol=1e-5 * factor)  # type: ignore[arg-type]


def test_convolutions_have_no_dynamic_kernel_and_are_named(residual: tuple[Graph, Context]) -> None:
    found = Quantise(activation={"bits": 8, "dynamic": True}).apply(*residual)
    assert found.tensors()["linear.weight"].dtype == torch.int8
    assert found.tensors()["conv1.weight"].dtype == torch.float32
    assert any("conv1 in floating point: no runtime has its kernel" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "weight", "activation"),
    [
        ("quantise(8)", {"bits": 8, "per": "channel"}, {"bits": 8}),
        ("quantise(bits=4)", {"bits": 4, "per": "channel"}, {"bits": 4}),
        ("quantise(int4)", {"bits": 4, "per": "channel"}, {"bits": 8}),
        ("quantise(int4, activation=None)", {"bits": 4, "per": "channel"}, None),
        ("quantise(ternary)", {"kind": "ternary"}, {"bits": 8}),
        ("quantise(fp16)", {"kind": "fp16"}, None),
    ],
)
def test_recipes(text: str, weight: dict[str, Any], activation: dict[str, Any] | None) -> None:
    found = recipe(text)
    assert isinstance(found, Quantise)
    assert (found.weight, found.activation) == (weight, activation)


@pytest.mark.parametrize("text", ["quantise(int9)", "quantise(bits=True)", "quantise(4, bits=4)"])
def test_wrong_recipes(text: str) -> None:
    with pytest.raises(InputError, match="Quantise: bits"):
        recipe(text)
