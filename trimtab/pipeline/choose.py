"""Choose: make another point of the front the chosen one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.core.errors import FileError
from trimtab.core.store import read_json, write_json
from trimtab.pipeline.folder import adopt


def choose(folder: Path, name: str) -> None:
    """Copy a point's files to the top of the folder and say so in report.json.

    Raises:
        InputError: there is no such point.
        FileError: the folder holds no run.
    """
    report: Any = read_json(folder / "report.json")
    if not isinstance(report, dict) or not isinstance(report.get("points"), list):
        raise FileError("choose: report.json is not a report", where=folder)
    adopt(folder, name)
    write_json(folder / "report.json", {**report, "chosen": name})
