"""Quantise: annotation, numerics, errors, and the form of the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compress.networks import Gated, Inception, Residual, Tagger, image_batch
from trimtab.compress import Quantise
from trimtab.compress.quantise.annotate import annotate
from trimtab.compress.quantise.calibrate import histograms
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.fuse import for_inference
from trimtab.graph.model import Graph
from trimtab.run.export import export_onnx
from trimtab.run.overflow import support_here


def captured(model: nn.Module, example: Any = None) -> tuple[Graph, Context]:
    example = image_batch() if example is None else example
    model.eval()
    return capture(model, example), Context(Task(model, example), calibrate=((example,),))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_int8_weights_keep_their_names_and_outputs_stay_close() -> None:
    graph, context = captured(Residual())
    before = {k: v.clone() for k, v in graph.tensors().items()}
    quantised = Quantise().apply(graph, context)
    tensors = quantised.tensors()
    assert tensors["conv1.weight"].dtype == torch.int8
    assert tensors["conv1.weight_scale"].shape == (8,)
    assert not [name for name, _ in quantised.net.named_parameters() if name.endswith("weight")]
    assert relative(quantised(image_batch()), graph(image_batch())) < 0.03
    assert all(torch.equal(before[k], v) for k, v in graph.tensors().items())


@torch.no_grad()
def test_folding_batch_norm_changes_nothing() -> None:
    graph, _ = captured(Residual())
    folded = for_inference(graph)
    assert not list(folded.nodes(torch.ops.aten.batch_norm.default))
    assert torch.allclose(folded(image_batch()), graph(image_batch()), atol=1e-5)


def test_what_runtimes_fuse_is_not_cut_apart() -> None:
    graph, _ = captured(Residual())
    found = annotate(for_inference(graph))
    # the input, both convolutions' results (the first behind its relu), the sum behind its relu, the mean
    assert list(found.tensors) == ["x", "relu", "conv2d_1", "relu_1", "mean"]
    assert len(set(found.tensors.values())) == 5
    assert found.weights == {"conv1.weight": 0, "conv2.weight": 0, "linear.weight": 0}


def test_concatenated_and_moved_values_share_a_scale() -> None:
    graph, _ = captured(Inception())
    found = annotate(graph)
    assert found.tensors["relu"] == found.tensors["relu_1"] == found.tensors["cat"] == found.tensors["max_pool2d"]
    assert found.tensors["flatten"] == found.tensors["relu_2"] == "relu_2"
    quantised = Quantise().apply(graph, Context(Task(nn.Identity(), image_batch()), calibrate=((image_batch(),),)))
    with torch.no_grad():
        wanted, values = graph(image_batch()), quantised(image_batch())
    assert relative(values["logits"], wanted["logits"]) < 0.05  # type: ignore[call-overload]
    assert relative(values["features"], wanted["features"]) < 0.05  # type: ignore[call-overload]


@torch.no_grad()
def test_gates_and_unfused_activations_stay_in_floating_point_and_are_named() -> None:
    graph, context = captured(Gated())
    quantised = Quantise().apply(graph, context)
    assert relative(quantised(image_batch()), graph(image_batch())) < 0.05
    assert any("hardswish (1)" in n and "mul (1)" in n and "sigmoid (1)" in n for n in quantised.notes)


@torch.no_grad()
def test_tokens_and_tied_embeddings(tmp_path: Path) -> None:
    example = {"tokens": torch.randint(0, 20, (4, 7)), "scale": torch.rand(4, 7, 1)}
    graph, context = captured(Tagger(), example)
    quantised = Quantise().apply(graph, context)
    assert quantised.tensors()["embed.weight"].dtype == torch.float32
    assert quantised.tensors()["qkv.weight"].dtype == torch.int8
    assert any("also read by embedding" in note for note in quantised.notes)
    inputs = tuple(example.values())
    assert relative(quantised(*inputs), graph(*inputs)) < 0.02  # type: ignore[arg-type]
    export_onnx(quantised, tmp_path / "model.onnx")


def test_equals_torchao() -> None:
    """The same annotation through torchao's own prepare and convert gives the same numbers."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    aten = torch.ops.aten
    affine, symmetric = torch.per_tensor_affine, torch.per_channel_symmetric
    act = QuantizationSpec(torch.uint8, MinMaxObserver, quant_min=0, quant_max=255, qscheme=affine)
    top = support_here(None).top
    weight = QuantizationSpec(
        torch.int8, PerChannelMinMaxObserver, quant_min=-top, quant_max=top, qscheme=symmetric, ch_axis=0
    )

    class Same(Quantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            for node in model.graph.nodes:
                inputs, output = {}, None
                if node.target is aten.conv2d.default:
                    inputs = {node.args[0]: act, node.args[1]: weight}
                elif node.target is aten.add.Tensor:
                    inputs = {node.args[0]: act, node.args[1]: act}
                elif node.target is aten.relu.default:
                    output = act
                if inputs or output:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)
            return model

        def validate(self, model: Any) -> None:
            pass

    graph, context = captured(Residual())
    prepared = prepare_pt2e(for_inference(graph).net, Same())
    prepared(image_batch())
    wanted = convert_pt2e(prepared)(image_batch())[0]
    # symmetric scales there are max / ((127 + 127) / 2), as here
    found = Quantise(skip=("linear",)).apply(graph, context)(image_batch())
    assert isinstance(found, Tensor)
    assert torch.allclose(found, wanted, atol=1e-5)


@torch.no_grad()
def test_prepared_computes_what_converted_does() -> None:
    graph, context = captured(Residual())
    for technique in (Quantise(), Quantise(calibration="mse"), Quantise(weight={"per": "tensor"})):
        prepared = technique.prepare(graph, context)
        # the linear layer's bias is rounded to 32 bits, nothing else differs
        assert torch.allclose(technique.convert(prepared)(image_batch()), prepared(image_batch()), atol=1e-4)


def test_gradients_pass_straight_through() -> None:
    graph, context = captured(Residual())
    prepared = Quantise().prepare(graph, context)
    out = prepared(image_batch())
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in prepared.net.named_parameters()}
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients.values())


def test_training_between_lowers_the_loss_and_moves_the_integers() -> None:
    graph, context = captured(Residual())
    data = Arrays(image_batch(64), torch.arange(64) % 5, batch=32, shuffle=True)
    task = Task(context.task.model, image_batch(), train=data, loss=nn.functional.cross_entropy)
    context = Context(task, teacher=graph, calibrate=context.calibrate)
    plain = Quantise().apply(graph, context)
    train = {"steps": 30, "lr": 0.05, "alpha": 1.0, "channels_last": False}
    trained = Quantise(train=train).apply(graph, context)
    assert trained.tensors()["conv1.weight"].dtype == torch.int8
    assert not torch.equal(trained.tensors()["conv2.weight"], plain.tensors()["conv2.weight"])

    def loss(network: Graph) -> float:
        return sum(float(nn.functional.cross_entropy(network(x), y)) for x, y in data)  # type: ignore[arg-type]

    with torch.no_grad():
        assert loss(trained) < loss(plain)


def test_histograms_count_every_value() -> None:
    graph, _ = captured(Residual())
    found = histograms(graph, {"relu": "relu"}, [(image_batch(4),), (image_batch(8),)])["relu"]
    assert found.counts.sum() == 12 * 8 * 64
    assert found.low == 0.0


def test_no_data_means_random_inputs_and_a_note() -> None:
    graph, context = captured(Residual())
    quantised = Quantise().apply(graph, Context(context.task))
    assert any("random normal inputs" in note for note in quantised.notes)
    checked = Quantise().apply(graph, Context(context.task, validate=context.calibrate))
    assert any("validation" in note for note in checked.notes)


def test_skip_is_named_and_a_skip_that_fits_nothing_is_refused() -> None:
    graph, context = captured(Residual())
    quantised = Quantise(skip=("conv*",)).apply(graph, context)
    assert quantised.tensors()["conv1.weight"].dtype == torch.float32
    assert any("conv1 in floating point: skip=conv*" in note for note in quantised.notes)
    with pytest.raises(InputError, match="skip: got 'convx', expected one of conv1, conv2, linear"):
        Quantise(skip=("convx",)).apply(graph, context)


def test_quantised_once() -> None:
    graph, context = captured(Residual())
    with pytest.raises(InputError, match="quantised already"):
        Quantise().apply(Quantise().apply(graph, context), context)
    for settings in ({}, {"weight": {"kind": "bf16"}, "activation": None}):
        with pytest.raises(InputError, match="quantised already"):
            Quantise().apply(Quantise(**settings).prepare(graph, context), context)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without fake quantisation"):
        Quantise().convert(graph)


def _broken(change: Callable[[Tensor], object]) -> object:
    return change(image_batch())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (_broken(lambda x: (x[:, :2],)), "shape"),
        (_broken(lambda x: (x * float("nan"),)), "NaN or infinite"),
        (_broken(lambda x: (x / 0,)), "NaN or infinite"),
        (_broken(lambda x: (torch.ones_like(x),)), "the same value everywhere"),
        (_broken(lambda x: {"image": x}), "misses input 'x'"),
        (_broken(lambda x: (x[:0],)), "without a sample"),
        (_broken(lambda x: (x.double(),)), "float64"),
    ],
)
def test_wrong_calibration_data_is_one_line(batch: object, message: str) -> None:
    graph, context = captured(Residual())
    with pytest.raises(InputError, match=message) as caught:
        Quantise().apply(graph, Context(context.task, calibrate=(batch,)))
    assert "\n" not in str(caught.value)


def test_no_batch_though_the_task_has_data() -> None:
    graph, context = captured(Residual())
    task = Task(context.task.model, image_batch(), calibrate=[])
    with pytest.raises(InputError, match="no calibration data"):
        Quantise().apply(graph, Context(task))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": {"bits": 9}}, "weight: bits: got 9, expected 2, 3, 4, 5, 6, 7 or 8"),
        ({"weight": {"groups": 5}}, "got 'groups', expected only kind, bits, per, group"),
        ({"weight": {"kind": "ternary", "bits": 2}}, "bits with kind ternary"),
        ({"weight": {"kind": "binary", "per": "group"}}, "per group with kind binary"),
        ({"weight": {"per": "channel", "group": 32}}, "group with per channel"),
        ({"weight": {"group": 1}}, "group: got 1, expected 2 or more"),
        ({"activation": {"bits": 4, "dynamic": True}}, "4 and dynamic, expected 8"),
        ({"layers": {"convx": {"bits": 4}}}, "layers: got 'convx', expected one of conv1, conv2, linear"),
        ({"layers": {"conv1": {"bits": 1}}}, "layers: conv1: bits: got 1"),
        ({"rounding": "up"}, "method: got 'up', expected nearest or adaround"),
        ({"correct": "yes"}, "correct: got 'yes'"),
        ({"activation": {"bits": "8"}}, "activation: bits"),
        ({"calibration": "max"}, "expected minmax, average, percentile, entropy or mse"),
        ({"train": {"lr": 1.0}}, "steps is missing"),
        ({"train": {"steps": 1, "precision": "bf16"}}, "expected fp32"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    graph, context = captured(Residual())
    with pytest.raises(InputError, match=message):
        Quantise(**settings).apply(graph, context)
