"""Bias correction: means of layers as in the float network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.compress.networks import Residual, Tagger, image_batch
from tests.compress.test_rounding import output_error, prepared
from trimtab.compress.quantise.correct import corrected
from trimtab.core.context import quiet


def test_means_of_one_layer_become_those_of_the_float_network() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, stride=2)
    made = prepared(layer, (image_batch(200),), weight={"bits": 2, "per": "channel"})
    graph, folded, data = made
    result = corrected(graph, folded, data, quiet)
    with torch.no_grad():
        before, after = ((g(*data[0]) - folded(*data[0])).mean((0, 2, 3)) for g in (graph, result))  # type: ignore[operator]
    # the result itself is quantised behind the layer, which leaves a rest of its own
    assert float(before.abs().max()) > 5 * float(after.abs().max())


def test_means_are_equal_to_a_millionth_without_quantised_activations() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 7)
    inputs = torch.randn(300, 12) + 1
    graph, folded, data = prepared(layer, (inputs,), weight={"bits": 2, "per": "channel"}, activation=None)
    result = corrected(graph, folded, data, quiet)
    with torch.no_grad():
        shift = [(g(inputs) - folded(inputs)).double().mean(0).abs().max() for g in (graph, result)]  # type: ignore[operator]
    assert shift[0] > 0.01
    assert shift[1] < 1e-6


def test_a_layer_without_a_bias_gets_one_beside_its_weight() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(100, 12) + 1
    model = nn.Sequential(nn.Linear(12, 7, bias=False), nn.ReLU(), nn.Linear(7, 3))
    graph, folded, data = prepared(model, (inputs,), weight={"bits": 2, "per": "channel"}, activation=None)
    result = corrected(graph, folded, data, quiet)
    assert result.tensors()["0.bias"].shape == (7,)
    assert "0.bias" not in graph.tensors()
    with torch.no_grad():
        change = (result(inputs) - folded(inputs)).double().mean(0)  # type: ignore[operator]
    assert float(change.abs().max()) < 1e-6


def test_binary_layers_are_corrected_too() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(100, 12) + 1
    model = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))
    kinds = {"0": {"kind": "binary"}, "2": {"bits": 4}}
    graph, folded, data = prepared(model, (inputs,), layers=kinds, weight={}, activation=None)
    result = corrected(graph, folded, data, quiet)
    with torch.no_grad():
        shift = [(g(inputs) - folded(inputs)).double().mean(0).abs().max() for g in (graph, result)]  # type: ignore[operator]
    assert shift[0] > 0.01
    assert shift[1] < 1e-6
    assert not torch.equal(result.tensors()["0.bias"], graph.tensors()["0.bias"])


def test_what_has_no_place_for_a_bias_is_named() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.other = nn.Linear(4, 4)
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(x, self.weight, self.bias)
            return self.other(x) + self.bias

    graph, folded, data = prepared(Plain(), (torch.randn(64, 4),), activation=None)
    result = corrected(graph, folded, data, quiet)
    assert any("without a bias of their own: weight" in note for note in result.notes)


def test_correction_brings_a_network_nearer() -> None:
    torch.manual_seed(0)
    made = prepared(Residual(), (image_batch(64) + 0.5,))
    assert output_error(made, corrected(*made, quiet)) < output_error(made, made[0])
    tokens = torch.randint(20, (32, 6))
    made = prepared(Tagger(), (tokens, torch.rand(32, 6, 1) + 0.5), activation=None)
    assert output_error(made, corrected(*made, quiet)) < output_error(made, made[0])
