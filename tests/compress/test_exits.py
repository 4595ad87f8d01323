"""Exits: calibration, confidence and thresholds by hand; training, files and branches on a small residual network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.compress.residual import Residual, setting
from trimtab.compress.exits.calibration import calibration_error, temperature
from trimtab.compress.exits.heads import Head, Selected, confidence
from trimtab.compress.exits.technique import Exits, places
from trimtab.compress.exits.thresholds import NEVER, Costs, choose, leaving, outcome
from trimtab.compress.quantise.technique import Quantise
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.task import Arrays, Task
from trimtab.graph.capture import capture
from trimtab.graph.model import Graph
from trimtab.graph.save import load, save
from trimtab.pipeline.ways import ways
from trimtab.run.export import export_onnx
from trimtab.run.integer import require_integer

PLAIN = {"precision": "fp32", "channels_last": False}


def test_temperature_is_that_of_the_greatest_likelihood() -> None:
    # p = sigmoid(4 / T) is right for 3 of 4: sigmoid(4 / T) = 3/4, so T = 4 / ln 3
    logits, labels = torch.tensor([[4.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])
    assert temperature(logits, labels) == pytest.approx(4 / math.log(3), rel=1e-6)
    assert 0.05 <= temperature(logits, torch.zeros(4, dtype=torch.long)) < 0.2  # always right: as sure as can be


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    # confidences 0.9 (two samples, one right) and 0.6 (one, right): (|1 - 1.8| + |1 - 0.6|) / 3
    likely = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    found = calibration_error(likely.log(), torch.tensor([0, 1, 0]))
    assert found == pytest.approx((0.8 + 0.4) / 3, abs=1e-6)


def test_confidence_by_hand() -> None:
    logits = torch.tensor([[math.log(2.0), 0.0]])  # p = 2/3, 1/3
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert float(confidence(logits, "probability")) == pytest.approx(2 / 3)
    assert float(confidence(logits, "margin")) == pytest.approx(1 / 3)
    assert float(confidence(logits, "entropy")) == pytest.approx(1 - entropy / math.log(2), abs=1e-6)


def test_costs_add_the_heads_on_the_way_that_are_used() -> None:
    costs = Costs((0.25, 0.5), (0.02, 0.03))
    assert costs.of((0.9, 0.9)) == pytest.approx([0.27, 0.55, 1.05])
    assert costs.of((0.9, NEVER)) == pytest.approx([0.27, 0.52, 1.02])


def test_inputs_leave_at_the_first_exit_that_is_sure() -> None:
    sure = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.1], [0.9, 0.9]])
    assert leaving(sure, (0.5, 0.5)).tolist() == [0, 1, 2, 0]
    assert leaving(sure, (NEVER, 0.5)).tolist() == [2, 1, 2, 1]


def example() -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Four samples of class 0: the exit is right for the two that it is surest of, the end always."""
    exit_ = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    end = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    logits = torch.stack([exit_, end], 1)
    return logits, confidence(exit_, "probability"), lambda found: float((found.argmax(1) == 0).double().mean())


def test_outcome_of_a_threshold_by_hand() -> None:
    logits, sure, value = example()
    found = outcome(logits, sure, (0.7,), Costs((0.5,), (0.1,)), value)  # sigmoid(1) = 0.73 leaves too, and is wrong
    assert found.shares == pytest.approx((0.75, 0.25))
    assert found.drop == pytest.approx(0.25)
    assert found.cost == pytest.approx(0.75 * 0.6 + 0.25 * 1.1)


def test_the_cheapest_thresholds_within_the_drop_are_chosen() -> None:
    logits, sure, value = example()
    whole = choose(logits, sure, Costs((0.5,), (0.1,)), value, 0.0)
    assert whole.drop == 0
    assert whole.shares == pytest.approx((0.5, 0.5))
    assert choose(logits, sure, Costs((0.5,), (0.1,)), value, 0.25).shares[0] == pytest.approx(0.75)
    dear = choose(logits, sure, Costs((0.5,), (0.4,)), value, 0.0)  # 0.5 * 0.9 + 0.5 * 1.4 > 1
    assert dear.thresholds == (NEVER,)
    assert dear.cost == 1.0


def test_selected_gives_each_sample_its_own_answer() -> None:
    heads = {name: Head([2], 2, (), True) for name in ("a", "b")}
    for head in heads.values():
        with torch.no_grad():
            head.linear.weight.copy_(torch.eye(2))
            head.linear.bias.zero_()
    a = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 9.0], [0.0, 9.0], [0.0, 0.0]])
    end = torch.tensor([[7.0, 8.0]]).repeat(3, 1)
    found = Selected(heads, (0.9, 0.9), "probability")(a, b, end)
    assert found.tolist() == [[9.0, 0.0], [0.0, 9.0], [7.0, 8.0]]


@pytest.fixture(scope="module")
def made() -> tuple[Graph, Context, Exits, Graph]:
    graph, context = setting()
    technique = Exits(at=3, train={"steps": 40, **PLAIN}, max_drop=0.02)
    resolved = technique.resolve(graph, context)
    return graph, context, resolved, resolved.apply(graph, context)


def test_resolves_into_names_thresholds_and_temperatures(made: Any) -> None:
    resolved = made[2]
    assert resolved.at == ("layer1.0", "layer1.1", "layer2.0")
    assert len(resolved.threshold) == len(resolved.temperature) == 3
    assert all(t is None or 0 <= t <= 1 for t in resolved.threshold)
    assert any(t is not None for t in resolved.threshold)
    assert resolved.train["steps"] == 40


def test_the_network_itself_stays_as_it_is(made: Any) -> None:
    graph, _, _, result = made
    after = result.tensors()
    assert all(torch.equal(after[name], value) for name, value in graph.tensors().items())
    assert any(name.startswith("exits.heads.") for name in after)


def test_drop_and_shares_are_those_that_the_notes_say(made: Any) -> None:
    graph, context, _, result = made
    x, y = context.task.validate.inputs, context.task.validate.targets
    with torch.no_grad():
        before, after = (float((g(x).argmax(1) == y).double().mean()) for g in (graph, result))
    assert before - after <= 0.02
    assert f"a drop of {before - after:.4f} there" in " ".join(result.notes)
    assert "calibration error" in " ".join(result.notes)
    told = ways(result, context.validate, "validate", context)
    assert len(told) == 1
    assert "leave early" in told[0]


def test_thresholds_decide_for_each_sample(made: Any) -> None:
    graph, context, resolved, _ = made
    x = context.validate[0][0]
    never = replace(resolved, threshold=(None,) * 3).apply(graph, context)
    always = replace(resolved, threshold=(0.0, None, None)).apply(graph, context)
    with torch.no_grad():
        assert torch.equal(never(x), graph(x))
        assert not torch.equal(always(x), graph(x))
        alone = torch.cat([always(one) for one in x.split(1)])
        torch.testing.assert_close(alone, always(x), rtol=1e-4, atol=1e-4)


def test_the_file_skips_what_no_sample_needs_and_agrees_for_any_batch(made: Any, tmp_path: Path) -> None:
    import onnxruntime

    graph, context, resolved, _ = made
    result = replace(resolved, threshold=(0.9, 0.9, None)).apply(graph, context)
    x = context.validate[0][0]
    save(result, tmp_path)
    with torch.no_grad():
        expected = result(x)
        assert torch.equal(load(tmp_path)(x), expected)
    export_onnx(result, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for size in (1, 5, len(x)):
        found = torch.cat([torch.from_numpy(session.run(None, {"x": part.numpy()})[0]) for part in x.split(size)])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_quantise_after_exits_runs_in_integers_inside_the_branches(made: Any, tmp_path: Path) -> None:
    graph, context, resolved, _ = made
    result = Quantise().apply(replace(resolved, threshold=(0.9, 0.9, None)).apply(graph, context), context)
    export_onnx(result, tmp_path / "model.onnx")
    report = require_integer(tmp_path / "model.onnx", "onnxruntime")
    assert {"layer2.1.conv2", "linear", "exits.heads.layer1_0.linear"} <= {layer.name for layer in report}
    with pytest.raises(InputError, match="quantised already"):
        Exits(train={"steps": 0}, threshold=0.5).apply(result, context)


def test_joint_training_changes_the_network_too() -> None:
    graph, context = setting()
    result = Exits(at=1, train={"steps": 2, **PLAIN}, threshold=1, joint=True).apply(graph, context)
    assert not torch.equal(result.tensors()["conv1.weight"], graph.tensors()["conv1.weight"])


def test_bad_settings_are_one_line() -> None:
    graph, context = setting()
    for settings, message in (
        ({"at": 0}, "Exits: at"),
        ({"at": ("nowhere",)}, "layer1.0"),
        ({"max_drop": -1.0}, "max_drop"),
        ({"threshold": (0.5,)}, "3, one a place"),
        ({"temperature": (0.5,), "threshold": 0.5}, "numbers above 0"),
        ({"confidence": "guess"}, "probability"),
        ({"at": ()}, "at: got no names"),
        ({"threshold": -3.0}, "from 0 to 1"),
        ({"threshold": (0.5, None, 2.0)}, "from 0 to 1"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            Exits(**{"at": 3, "train": {"steps": 0}, **settings}).apply(graph, context)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.linear = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], 1))


def test_a_network_without_a_chain_and_one_that_is_no_classifier_are_refused() -> None:
    x = torch.randn(8, 4)
    for model, message in ((nn.Sequential(nn.Linear(4, 3)), "no chain of blocks"), (nn.Linear(4, 1), "no classifier")):
        task = Task(model, x[:2], train=Arrays(x, torch.arange(8) % 3), loss=functional.cross_entropy)
        graph = capture(model, x[:2])
        with pytest.raises(InputError, match=message):
            Exits(train={"steps": 0}, threshold=0.5).apply(graph, Context(task, teacher=graph))
    assert all(link.share < 0.95 for link in places(capture(Residual().eval(), torch.randn(2, 3, 16, 16))))


def test_without_data_a_threshold_must_be_given() -> None:
    graph, context = setting()
    bare = replace(context, calibrate=(), validate=())
    with pytest.raises(InputError, match="no data to choose thresholds on"):
        Exits(train={"steps": 0}).apply(graph, bare)
    assert Exits(train={"steps": 0}, threshold=0.5).resolve(graph, bare).temperature == (1.0,) * 3
