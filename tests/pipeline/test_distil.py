"""Distil: a student beside itself trained alone, proved on unseen data; and teachers that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import trimtab as tt
from tests.pipeline.test_fit import data, learnt, plain
from trimtab.cli import status
from trimtab.compress.plan import apply_plan, technique_of
from trimtab.core.context import Context
from trimtab.core.errors import InputError
from trimtab.core.plan import Plan
from trimtab.core.task import Task, accuracy
from trimtab.graph.capture import capture
from trimtab.graph.save import load, save
from trimtab.pipeline.compress import apply_to
from trimtab.pipeline.distil import Length, alone, distil, matching
from trimtab.train.fresh import fresh

SETTINGS = {"precision": "fp32", "channels_last": False, "lr": 0.01}


def task_of(model: nn.Module, name: str) -> Task:
    return Task(
        model,
        torch.randn(2, 1, 8, 8),
        train=data(256, 1, shuffle=True),
        validate=data(128, 2),
        test=data(128, 3),
        loss=nn.functional.cross_entropy,
        score=accuracy,
        name=name,
    )


@pytest.fixture(scope="module")
def teacher() -> Task:
    return task_of(learnt(lambda: plain(24), 3e-3, 5), "big")


@pytest.fixture(scope="module")
def student() -> Task:
    torch.manual_seed(4)
    return task_of(plain(4).eval(), "little")


@pytest.fixture(scope="module")
def run(teacher: Task, student: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a saved network as the first teacher and a task as the second."""
    saved, out = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("runs") / "distilled"
    save(capture(teacher.model, teacher.example), saved)
    settings = {**SETTINGS, "relations": {"method": "similarity", "weight": 10}, "weights": [2, 1]}
    result = tt.distil([saved, teacher], student, steps=40, settings=settings, out=out)
    assert result.folder == out
    return out


def test_the_report_has_teacher_student_and_the_student_alone(run: Path, student: Task) -> None:
    report = json.loads((run / "report.json").read_text())
    (original, made) = (next(p for p in report["points"] if p["name"] == n) for n in ("original", "distilled"))
    control = report["control"]["metrics"]
    assert report["chosen"] == "distilled"
    assert {m["score"]["split"] for m in (report["baseline"]["metrics"], control, made["metrics"])} == {"test"}
    assert made["metrics"]["params"]["value"] == control["params"]["value"] < original["metrics"]["params"]["value"]
    assert made["metrics"]["size_ratio"]["value"] > 1
    assert control["score"]["n"] == 128
    assert any(
        "Distilled against alone, the same steps:" in note and "n = 128, test" in note for note in report["notes"]
    )
    assert "the student trained without its teacher" in (run / "report.html").read_text()
    assert tt.load(run)(torch.randn(3, 1, 8, 8)).shape == (3, 4)


def test_its_training_is_a_plan_that_names_its_teachers(
    run: Path, teacher: Task, student: Task, tmp_path: Path
) -> None:
    plan = Plan.of_json(json.loads((run / "plan.json").read_text()))
    (step,) = plan.steps
    assert step["steps"] == 40
    assert len(step["teachers"]) == 2
    with pytest.raises(InputError, match="Distil: other teachers than it was planned with"):
        apply_to(plan, student, out=tmp_path / "again")
    graph = capture(student.model, student.example)
    other = json.loads((run / "front" / "alone" / "plan.json").read_text())["steps"][0]
    assert technique_of(other) == alone(technique_of(step))
    assert (other["steps"], other["alpha"]) == (40, 1.0)
    retrained = apply_plan(graph, Plan((other,)), Context(student)).tensors()
    assert all(torch.equal(retrained[k], v) for k, v in load(run / "front" / "alone").tensors().items())


def test_another_call_into_the_same_folder_is_refused(run: Path, teacher: Task, student: Task) -> None:
    before = (run / "model.safetensors").read_bytes()
    settings = {**SETTINGS, "relations": {"method": "similarity", "weight": 10}}
    with pytest.raises(InputError, match="another run is in this folder"):
        distil(teacher, student, Length(40), settings, out=run)
    assert (run / "model.safetensors").read_bytes() == before


def test_a_task_without_labels_has_no_control(teacher: Task, student: Task, tmp_path: Path) -> None:
    unlabelled = replace(student, loss=None)
    result = distil(teacher, unlabelled, Length(5), SETTINGS, fresh=True, out=tmp_path / "run")
    assert result.report["control"] is None
    assert any("there is no control" in note for note in result.report["notes"])
    assert any("It began with new weights" in note for note in result.report["notes"])


class Wide(nn.Module):
    """The quarters among seven classes, or of images with two channels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64 * channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("channels", "classes", "told"),
    [
        (
            1,
            7,
            r"outputs of teacher and student do not match: got wide, the teacher: \S+ \[N, 7\], expected as of little,",
        ),
        (2, 4, r"inputs of teacher and student do not match: got wide, the teacher: x \[N, 2, 8, 8, float32\]"),
    ],
)
def test_a_teacher_that_does_not_match_is_named_beside_the_student(
    student: Task, tmp_path: Path, channels: int, classes: int, told: str
) -> None:
    wide = replace(student, model=Wide(channels, classes), example=torch.randn(2, channels, 8, 8), name="wide")
    with pytest.raises(InputError, match=told) as caught:
        distil(wide, student, Length(5), SETTINGS, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_of_single_outputs_do_not_count(teacher: Task, student: Task) -> None:
    mine, theirs = (capture(t.model, t.example) for t in (student, teacher))
    found = matching(replace(theirs, outputs=("logits",), bare=False), teacher, mine, student)
    assert (found.inputs[0].name, found.outputs, found.bare) == (mine.inputs[0].name, mine.outputs, True)


class Other(nn.Module):
    """The quarters, its input and its output by other names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.linear(image.flatten(1))}


def test_a_teacher_of_other_names_is_scored_as_the_student(student: Task, tmp_path: Path) -> None:
    other = replace(student, model=Other().eval(), name="other")
    result = distil(other, student, Length(2), SETTINGS, out=tmp_path / "run")
    assert {"original", "distilled"} <= {p["name"] for p in result.report["points"]}
    assert result.report["baseline"]["metrics"]["score"]["n"] == 128


class Taken(nn.Module):
    """One image less twice the other."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - 2 * b


class Swapped(Taken):
    """The same, its inputs in another order."""

    def forward(self, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return a - 2 * b


def test_a_teacher_with_its_inputs_in_another_order_is_given_each_by_its_name(student: Task) -> None:
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    mine, theirs = (capture(model, (a, b)) for model in (Taken(), Swapped()))
    assert not torch.equal(theirs(a, b), mine(a, b))
    found = matching(theirs, "teacher", mine, student)
    assert [spec.name for spec in found.inputs] == ["a", "b"]
    assert torch.equal(found(a, b), mine(a, b))
    assert [spec.name for spec in theirs.inputs] == ["b", "a"]


@pytest.mark.parametrize(
    ("length", "settings", "told"),
    [
        (Length(), {}, "neither of steps and hours, expected one of the two"),
        (Length(3, 0.1), {}, "both of steps and hours"),
        (Length(hours=0.0), {}, "how long: got 0.0, expected above 0"),
        (Length(3), {"alpha": 2}, "alpha: got 2"),
        (Length(3), {"colour": 2}, "unknown setting 'colour'"),
        (Length(3), {"weights": [1, 2]}, "distil: weights: got 2 of 1 teachers"),
        (Length(3), {"relations": {"method": "rkd", "places": {"nowhere": "nowhere"}}}, "nowhere"),
    ],
)
def test_what_is_wrong_is_said_first(
    teacher: Task, student: Task, tmp_path: Path, length: Length, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        distil(teacher, student, length, settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_there_is_no_distilling_without_a_teacher(student: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="distil: teacher: got none"):
        distil([], student, Length(3), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_new_weights_are_drawn_from_the_seed_by_each_layer() -> None:
    model = plain(4)
    one, again, other = fresh(model, 1), fresh(model, 1), fresh(model, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert float(one[0].weight.detach().abs().max()) <= 1 / 3  # torch's bound 1 / sqrt(9 inputs)
    model.extra = nn.ParameterList([torch.zeros(2)])
    with pytest.raises(InputError, match=r"fresh: .* extra\.0: got ParameterList without reset_parameters"):
        fresh(model, 0)


def test_attention_draws_its_weights_anew() -> None:
    model = nn.MultiheadAttention(8, 2)
    one, again, other = fresh(model, 1), fresh(model, 1), fresh(model, 2)
    assert torch.equal(one.in_proj_weight, again.in_proj_weight)
    assert not torch.equal(one.in_proj_weight, other.in_proj_weight)
    assert not one.out_proj.bias.any()  # as torch makes it


def test_the_command_refuses_what_is_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        ((str(tmp_path), "digits", "--steps", "3"), "the teacher's folder holds no network"),
        (("nothing.py", "digits", "--steps", "3"), "no such file: nothing.py"),
        (("digits", "digits", "--steps", "3", "--features", "fitnets:much"), "option --features: got 'fitnets:much'"),
        (("digits",), "Missing argument 'STUDENT'"),
    ):
        assert status(["distil", *arguments]) == 2
        assert told in capsys.readouterr().err


def test_a_folder_without_a_network_does_not_hide_a_task_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.cli import distil as command
    from trimtab.pipeline import load as loading

    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_task", lambda text: f"task {text}")
    assert command._teacher("digits") == "task digits"
    (tmp_path / "digits" / "model.trim.json").write_text("{}")
    assert command._teacher("digits") == Path("digits")
