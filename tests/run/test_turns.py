"""Turns and skipping: means over real inputs by a clock that the test moves; what a runtime does not compute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trimtab.core.errors import InputError
from trimtab.graph.capture import capture
from trimtab.graph.choices import choices
from trimtab.run import turns
from trimtab.run.export import export_onnx
from trimtab.run.layers import layers, parts
from trimtab.run.measure import latency, ratio
from trimtab.run.runtime import read_onnx
from trimtab.run.turns import BLOCK, depends_on_input, measure_in_turn


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """A session that takes as many seconds as its input says, times a factor."""

    inputs: tuple[Any, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, clock: Clock, factor: float, fixed: float = 0.0) -> None:
        self.clock, self.factor, self.fixed, self.seen = clock, factor, fixed, Counter[float]()

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        raise AssertionError("not what is timed")

    def prepared(self, inputs: Sequence[Any]) -> Callable[[], object]:
        seconds = float(inputs[0][0])

        def once() -> None:
            self.seen[seconds] += 1
            self.clock.now += self.fixed or self.factor * seconds

        return once

    def close(self) -> None:
        pass


def test_the_latency_is_the_mean_over_inputs_and_the_ratio_that_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    inputs = [[np.array([v], np.float32)] for v in (1.0, 2.0, 3.0, 10.0)]  # one block: every round has them all
    sessions = {"whole": Timed(clock, 0, fixed=8.0), "early": Timed(clock, 1.0)}
    found = measure_in_turn(sessions, inputs, seconds=0.0)
    assert found["early"].median_s == pytest.approx(4.0)
    assert found["early"].interval == pytest.approx((4.0, 4.0))
    assert found["early"].inputs == 4
    assert found["early"].reliable
    assert ratio(found["whole"], found["early"]).value == pytest.approx(2.0)
    assert "mean over 4 real inputs in turn" in str(latency(found["early"]).how)


def test_every_input_has_as_many_turns_as_any_other_or_one_less(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    session = Timed(clock, 1.0)
    inputs = [[np.array([v], np.float32)] for v in range(1, 8)]
    found = measure_in_turn({"": session}, inputs, seconds=0.0)[""]
    timed = found.n * BLOCK
    assert sum(session.seen.values()) == timed * 3 + found.n  # three repeats, and one to warm up
    assert found.inputs == 7
    with pytest.raises(InputError, match="no input"):
        measure_in_turn({"": session}, [])


class Early(nn.Module):
    """Leaves behind the first convolution where its mean is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        first = a.mean((2, 3))
        end = self.c(torch.relu(self.b(a))).mean((2, 3))
        return torch.where(first.mean(1, keepdim=True) >= 0.0, first, end)


def convolutions(file: Path, x: np.ndarray[Any, Any], folder: Path) -> int:
    """How many convolutions ONNX Runtime runs on an input, by its own profile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options)
    session.run(None, {"x": x})
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return sum("Conv" in e["args"].get("op_name", "") for e in kernels)


def test_what_no_sample_needs_is_not_computed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Early().eval()
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        sure = model.a(x).mean((1, 2, 3)) >= 0
        expected = model(x)
    graph = capture(model, x[:2])
    assert [c.name for c in choices(graph)] == ["a"] or len(choices(graph)) == 1
    file = tmp_path / "model.onnx"
    export_onnx(graph, file)
    assert depends_on_input(file)
    assert [layer.name for layer in layers(read_onnx(file))] == ["a", "b", "c"]
    easy, hard = x[sure][:1].numpy(), x[~sure][:1].numpy()
    assert convolutions(file, easy, tmp_path) == 1
    assert convolutions(file, hard, tmp_path) == 3
    both = np.concatenate([easy, hard])
    assert convolutions(file, both, tmp_path) == 3  # a batch leaves when all of its samples do

    import onnxruntime

    found = onnxruntime.InferenceSession(str(file)).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


class Masked(nn.Module):
    """Masks what `Early` says by a test of the input: by a number spread over it, or by a value of its shape."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        self.early, self.head, self.spread = Early(), nn.Linear(4, 5), spread

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.early(x))
        other = torch.full((1, 1), -9.0) if self.spread else x[:, 0, 0, :5]
        return torch.where(x.mean((1, 2, 3)).unsqueeze(1) >= 0.0, y, other)


@pytest.mark.parametrize(("spread", "branches"), [(True, 1), (False, 2)])
def test_only_a_choice_between_values_of_one_shape_is_a_branch(spread: bool, branches: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Masked(spread).eval()
    x = torch.randn(32, 3, 8, 8)
    sure = x.mean((1, 2, 3)) >= 0
    graph = capture(model, x[:2])
    assert len(choices(graph)) == branches
    export_onnx(graph, tmp_path / "model.onnx")
    every = parts(read_onnx(tmp_path / "model.onnx").graph)[0]
    assert sum(node.op_type == "If" for node in every) == branches

    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for rows in (x[sure][:3], torch.cat([x[sure][:1], x[~sure][:2]]), x[~sure][:3]):  # all, some and none are taken
        with torch.no_grad():
            expected = model(rows).numpy()
        found = session.run(None, {"x": rows.numpy()})[0]
        assert found.shape == (3, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_choices_has_no_branch(tmp_path: Path) -> None:
    graph = capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8))
    assert choices(graph) == ()
    export_onnx(graph, tmp_path / "model.onnx")
    assert not depends_on_input(tmp_path / "model.onnx")
