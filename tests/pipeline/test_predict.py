"""Prediction of latency: weights and shapes that are known, and what may not be predicted from."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.core.errors import InputError
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.modes import set_mode
from trimtab.hardware.layer import Layer
from trimtab.pipeline.predict import FEATURES, calibrate, features, layer_model


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return x + self.second(x)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return set_mode(capture(Two().eval(), torch.randn(2, 3, 4, 4)), False)


def test_features_by_hand(graph: Graph) -> None:
    found = dict(zip(FEATURES, features(graph, lambda shapes: [float(s.macs) for s in shapes]), strict=True))
    assert found["layers"] == 16 * 8 * (27 + 8)
    assert found["joins"] == 1
    assert found["join bytes"] == 3 * 4 * 8 * 16  # two read, one written, four bytes each
    assert found["others"] == 0  # the norm is folded, the activation fused
    assert found["whole"] == 1


def test_weights_that_made_the_latencies_are_found() -> None:
    rng = np.random.default_rng(0)
    true = np.array([1.1, 2e-6, 1e-10, 3e-6, 2e-10, 5e-5])
    found = [rng.uniform(0.5, 2.0, 6) * [1e-3, 10, 1e5, 5, 1e5, 1] for _ in range(40)]
    predictor = calibrate(found, [float(f @ true) for f in found], "a board")
    for f in found:
        assert float(f @ np.array(predictor.weights)) == pytest.approx(float(f @ true), rel=1e-6)
    assert predictor.error < 1e-6


def test_a_predicted_latency_says_so(graph: Graph) -> None:
    rng = np.random.default_rng(0)
    found = [rng.uniform(0.5, 2.0, 6) for _ in range(12)]
    predictor = calibrate(found, [float(f.sum() * rng.uniform(0.9, 1.1)) for f in found], "a board")
    metric = predictor(graph, lambda shapes: [1.0 for _ in shapes])
    assert (metric.source, metric.unit) == ("predicted", "s")
    assert metric.interval is not None
    assert metric.interval[0] < metric.value < metric.interval[1]


def test_a_law_of_layers_is_learnt() -> None:
    def law(layer: Layer) -> float:
        return 1e-6 + layer.macs / 1e10 + layer.activations / 1e9

    rng = np.random.default_rng(0)

    def shape() -> Layer:
        i, o, n, k = (int(rng.choice(c)) for c in ((8, 16, 24, 32, 64), (8, 16, 32, 48, 64), (8, 16, 32), (1, 3, 5)))
        return Layer(i, o, (k, k), (n, n), (1, 1), (k // 2, k // 2), (1, 1))

    seen = {s: law(s) for s in (shape() for _ in range(150))}
    model = layer_model(seen)
    others = [s for s in (shape() for _ in range(60)) if s not in seen]
    off = [abs(math.log(p / law(s))) for p, s in zip(model(others), others, strict=True)]
    assert len(others) > 10
    assert np.median(off) < 0.05
    assert model.error < 0.08


def test_too_little_to_learn_from() -> None:
    with pytest.raises(InputError, match="8 or more"):
        calibrate([np.ones(6)] * 3, [1.0] * 3, "a board")
    with pytest.raises(InputError, match="above 0"):
        calibrate([np.ones(6)] * 8, [1.0] * 7 + [0.0], "a board")
    with pytest.raises(InputError, match="10 or more"):
        layer_model({Layer(8, 8): 1.0})
