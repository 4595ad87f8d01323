"""Explain on the folder of a run: the ranking on disk and on the page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.networks import lively
from tests.report.test_page import HOSTILE, read, text
from trimtab.core.errors import FileError, InputError
from trimtab.core.task import Arrays, Task, accuracy
from trimtab.pipeline.explain import explain
from trimtab.report.explain import explanation_page, rows, summary, write_explanation

CULPRIT = "layer1.0.conv1"


@pytest.fixture(scope="module")
def task() -> Task:
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    network = lively(x)
    with torch.no_grad():
        data = Arrays(x, network(x).argmax(1), batch=32)
    return Task(network, x[:2], validate=data, test=data, score=accuracy, name="echo")


def folder_of(path: Path, *steps: dict[str, Any], target: dict[str, Any] | None = None) -> Path:
    """A run's folder, as far as explain reads it."""
    report = {"target": target or {"device": "cpu"}, "seed": 0, "chosen": "by hand", "points": []}
    (path / "report.json").write_text(json.dumps(report))
    (path / "plan.json").write_text(json.dumps({"schema": 1, "steps": list(steps)}))
    return path


def test_the_worst_layer_comes_first_in_file_page_and_table(task: Task, tmp_path: Path) -> None:
    step = {"technique": "Quantise", "layers": {CULPRIT: {"bits": 2}}}
    found = explain(folder_of(tmp_path, step), task)
    written = json.loads((tmp_path / "explain.json").read_text())
    assert written["layers"][0]["name"] == CULPRIT
    assert written["layers"][0]["kind"] == "int2"
    assert (written["split"], written["samples"], written["source"]) == ("validate", 64, "measured")
    assert written["score"] == {"name": "accuracy", "unit": "fraction", "direction": "up"}
    page = write_explanation(found, tmp_path).read_text()
    assert page == explanation_page(found)
    words = text(page)
    for said in (CULPRIT, "echo", "by hand", "int2", "dB", "quantised alone", f"Input of {CULPRIT}"):
        assert said in words or said in page, said
    assert "script" not in read(page).seen
    head, body = rows(found)
    assert body[0][0] == CULPRIT
    assert {len(row) for row in body} == {len(head)}
    assert "64 samples, validate" in summary(found)[0]


def test_hostile_names_stay_text(task: Task, tmp_path: Path) -> None:
    from dataclasses import replace

    found = explain(folder_of(tmp_path, {"technique": "Quantise"}), task)
    layers = tuple(replace(row, name=HOSTILE) for row in found.costs.layers)
    page = explanation_page(replace(found, task=HOSTILE, point=HOSTILE, costs=replace(found.costs, layers=layers)))
    assert not {"script", "img"} & set(read(page).seen)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((), "nothing is quantised.*the original as it is.*trimtab choose"),
        (({"technique": "Prune", "keep": {}},), "nothing is quantised.*Prune"),
        (({"technique": "Quantise", "train": {"steps": 3}},), "training of the plan is not in the run's store"),
        (({"technique": "os.system"}, {"technique": "Quantise"}), "os.system"),
        (({"technique": "Quantise", "skip": ["nothing"]},), "nothing"),
    ],
)
def test_what_cannot_be_explained_is_told(
    task: Task, tmp_path: Path, steps: tuple[dict[str, Any], ...], told: str
) -> None:
    x = torch.randn(8, 1, 8, 8)
    trainable = Task(
        task.model,
        task.example,
        train=Arrays(x, torch.zeros(8, dtype=torch.long), batch=4),
        validate=task.validate,
        score=accuracy,
        loss=torch.nn.functional.cross_entropy,
    )
    with pytest.raises(InputError, match=told):
        explain(folder_of(tmp_path, *steps), trainable)
    assert not (tmp_path / "explain.json").exists()


def test_a_folder_without_a_run_and_a_target_at_an_address(task: Task, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        explain(tmp_path, task)
    folder_of(tmp_path, {"technique": "Quantise"}, target={"device": "http://board:7070"})
    with pytest.raises(InputError, match="at an address"):
        explain(tmp_path, task)
