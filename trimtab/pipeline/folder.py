"""The output folder: whose run it is, and what is finished in it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError, InputError
from trimtab.core.plan import Plan
from trimtab.core.store import Store, read_json, write_atomic, write_json
from trimtab.core.trial import Trial
from trimtab.pipeline.deploy import FILES
from trimtab.run.trim_file import CODED

_FREE = 200 << 20
"""Bytes that must be free on the disk before a run starts."""


def claim(folder: Path, run: Mapping[str, Any]) -> Store:
    """Make the folder this run's own, or go on with the same run; gives its store.

    Args:
        folder: the output folder; made if it is not there.
        run: what decides the run's result: task, target, goal, seed.

    Raises:
        InputError: it is a file, holds another run, or holds other things.
        FileError: it cannot be written, or the disk is nearly full.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("--out", where=folder, got="a file", expected="a folder")
    marker = folder / "run.json"
    if marker.exists():
        there = read_json(marker)
        if there != run:
            differing = (
                sorted(k for k in {*run, *there} if there.get(k) != run.get(k)) if isinstance(there, dict) else []
            )
            raise InputError(
                "--out: another run is in this folder",
                where=folder,
                got=f"another {', '.join(differing)}",
                do="Give another --out, or delete the folder.",
            )
    elif folder.exists() and any(folder.iterdir()):
        raise InputError("--out: the folder is not empty, and no run is in it", where=folder, do="Give another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise FileError("--out", where=folder, got=error.strerror or error) from error
    if free < _FREE:
        raise FileError("--out: no space left", where=folder, got=f"{free >> 20} MB free", expected=f"{_FREE >> 20} MB")
    write_json(marker, dict(run))
    return Store(folder / "store")


def release(folder: Path) -> None:
    """Give a folder back in which nothing is but its claim and the store, so that another run can have it."""
    if {path.name for path in folder.iterdir()} <= {"run.json", "store"}:
        shutil.rmtree(folder / "store", ignore_errors=True)
        (folder / "run.json").unlink()
        folder.rmdir()


def adopt(folder: Path, name: str) -> None:
    """Make a point of the front the chosen one: copy its files to the top of the folder.

    Raises:
        InputError: there is no such point.
    """
    source = folder / "front" / name
    known = sorted(p.name for p in (folder / "front").glob("*") if (p / FILES[0]).exists())
    if name not in known:
        raise InputError("choose", where=folder, got=repr(name), expected=f"one of {', '.join(known) or 'no points'}")
    if not (source / CODED).exists():
        (folder / CODED).unlink(missing_ok=True)  # of the point that was chosen before
    for file in sorted(p for p in source.iterdir() if p.is_file()):
        write_atomic(folder / file.name, lambda p, file=file: shutil.copyfile(file, p))  # type: ignore[misc]


def finished(folder: Path, plan: Plan) -> bool:
    """Whether a point's files are there already, of this very plan."""
    paths = [folder / name for name in FILES]
    return all(p.exists() for p in paths) and read_json(folder / "plan.json") == plan.json()


def write_study(folder: Path, trials: list[Trial]) -> None:
    """Write study.db: every trial of the run with its plan and metrics, failed ones too."""
    import json

    def write(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE trial (name TEXT PRIMARY KEY, stage TEXT, plan TEXT, error TEXT)")
            db.execute(
                "CREATE TABLE metric (trial TEXT, name TEXT, value REAL, unit TEXT, source TEXT, split TEXT,"
                " low REAL, high REAL, n INTEGER)"
            )
            for t in trials:
                db.execute(
                    "INSERT OR REPLACE INTO trial VALUES (?, ?, ?, ?)",
                    (t.name, t.stage, json.dumps(t.plan.json()), t.error),
                )
                for name, m in t.metrics.items():
                    low, high = m.interval or (None, None)
                    db.execute(
                        "INSERT INTO metric VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (t.name, name, m.value, m.unit, m.source, m.split, low, high, m.n),
                    )

    write_atomic(folder / "study.db", write)
