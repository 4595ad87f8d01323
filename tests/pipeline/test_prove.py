"""Prove and verify: what depends on its input is timed on the data that chose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.core.context import Context
from trimtab.core.metric import metric
from trimtab.core.plan import Plan
from trimtab.core.target import Target
from trimtab.core.task import Task
from trimtab.graph.capture import capture
from trimtab.pipeline import prove, verify
from trimtab.pipeline.deploy import real_inputs
from trimtab.pipeline.points import Point
from trimtab.pipeline.prepare import Prepared
from trimtab.run.device import Clocked


@dataclass
class Seen:
    """A device that keeps what it is given to time on."""

    turns: list[Any] = field(default_factory=list)
    precisions: tuple[str, ...] = ("fp32",)

    def clock(
        self,
        baseline: Path,
        files: Mapping[str, Path],
        target: Target,
        inputs: Sequence[Any],
        seconds: float = 1.0,
        turns: Sequence[Any] = (),
    ) -> dict[str, Clocked]:
        self.turns = list(turns)
        return {name: Clocked("seen", {"latency": metric("latency", 1.0, "measured", how="clock")}) for name in files}


def prepared(device: Any, test: tuple[Any, ...]) -> Prepared:
    model, x = nn.Linear(2, 2).eval(), torch.zeros(2, 2)
    graph = capture(model, x)
    context = Context(Task(model, x), Target(device="described", batch=2), validate=(torch.full((4, 2), 1.0),))
    return Prepared(graph, device, context, test, (), "key")


@pytest.mark.parametrize(("test", "value", "split"), [((torch.full((4, 2), 7.0),), 7.0, "test"), ((), 1.0, "validate")])
def test_proof_is_timed_on_the_data_to_prove_on(
    test: tuple[Any, ...], value: float, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Seen()
    found = prepared(device, test)
    monkeypatch.setattr(prove, "tested", lambda *_: (None, {}))
    monkeypatch.setattr(prove, "depends_on_input", lambda _: True)
    one = Point("original", Plan(), Path("m.onnx"), Clocked("seen", {}), {}, None, Path("m.onnx"))
    proof = prove.prove(found, one, [])["original"]
    assert len(device.turns) == 2
    assert all((x == value).all() for (x,) in device.turns)
    assert proof.clocked.metrics["latency"].how == f"clock, of `{split}`"


def test_verify_is_timed_on_the_data_to_prove_on_and_choices_on_the_other() -> None:
    device = Seen()
    found = prepared(device, (torch.full((4, 2), 7.0),))
    device_clock = metric("latency_ratio", 1.0, "measured")
    device.clock = lambda *args: (device.turns.extend(args[5]), {"": Clocked("", {"latency_ratio": device_clock})})[1]  # type: ignore[method-assign]
    verify._clocked(device, Path("a"), Path("b"), found.graph, found.context.target, found, {})  # type: ignore[arg-type]
    assert len(device.turns) == 2
    assert all((x == 7.0).all() for (x,) in device.turns)
    assert all((x == 1.0).all() for (x,) in real_inputs(found.graph, found.context))
