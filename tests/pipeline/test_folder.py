"""Whose folder it is, and nothing in it is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.metric import metric
from trimtab.core.plan import Plan
from trimtab.core.trial import Trial
from trimtab.pipeline.deploy import FILES
from trimtab.pipeline.folder import adopt, claim, finished, release, write_study
from trimtab.run.trim_file import CODED


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(folder, {"key": "a", "seed": 0})
    claim(folder, {"key": "a", "seed": 0})
    with pytest.raises(InputError, match=r"another run is in this folder.*another key.*another --out"):
        claim(folder, {"key": "b", "seed": 0})
    assert (folder / "run.json").read_text().count('"a"') == 1


def test_a_released_folder_is_anothers_unless_a_point_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(folder, {"key": "a"}).put("resolved-0", [1])
    release(folder)
    claim(folder, {"key": "b"}).put("resolved-0", [2])
    (folder / "front").mkdir()
    release(folder)
    with pytest.raises(InputError, match="another run is in this folder"):
        claim(folder, {"key": "a"})
    assert (folder / "store" / "resolved-0.json").exists()


def test_a_file_and_a_strangers_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="got a file"):
        claim(tmp_path / "file", {})
    with pytest.raises(InputError, match="not empty"):
        claim(tmp_path, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_adopt_copies_a_point_to_the_top(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "front" / name).mkdir(parents=True)
        for file in FILES:
            (tmp_path / "front" / name / file).write_text(f"{name} {file}")
    adopt(tmp_path, "b")
    assert (tmp_path / FILES[0]).read_text() == f"b {FILES[0]}"
    (tmp_path / "front" / "a" / CODED).write_text("a")
    adopt(tmp_path, "a")
    assert (tmp_path / CODED).read_text() == "a"
    adopt(tmp_path, "b")
    assert not (tmp_path / CODED).exists()
    with pytest.raises(InputError, match="one of a, b"):
        adopt(tmp_path, "../b/../c")


def test_finished_is_this_very_plan(tmp_path: Path) -> None:
    from trimtab.core.store import write_json

    plan = Plan(({"technique": "Quantise"},))
    for file in FILES:
        (tmp_path / file).write_text("x")
    write_json(tmp_path / "plan.json", plan.json())
    assert finished(tmp_path, plan)
    assert not finished(tmp_path, Plan())
    (tmp_path / FILES[0]).unlink()
    assert not finished(tmp_path, plan)


def test_study_keeps_failed_trials(tmp_path: Path) -> None:
    good = Trial("a", Plan(), {"size": metric("size", 10, "measured", n=1)}, stage="prove")
    bad = Trial("b", Plan(), error="RuntimeError: x", stage="race 1")
    write_study(tmp_path, [good, bad])
    with closing(sqlite3.connect(tmp_path / "study.db")) as db:
        assert db.execute("SELECT name, error FROM trial ORDER BY name").fetchall() == [
            ("a", None),
            ("b", "RuntimeError: x"),
        ]
        assert db.execute("SELECT trial, value, unit FROM metric").fetchall() == [("a", 10.0, "byte")]
