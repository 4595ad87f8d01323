"""Page: report.html of a run, in one file that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path

from trimtab.core.store import write_atomic
from trimtab.report.read import Report, read


def write(folder: Path | str) -> Path:
    """Write `report.html` beside `report.json`, and return its path.

    Raises:
        FileError: report.json is missing, damaged, or not what trimtab writes.
    """
    report = read(folder)
    path = Path(folder) / "report.html"
    write_atomic(path, lambda p: p.write_text(page(report), encoding="utf-8"))
    return path


def page(report: Report) -> str:
    return f"<!doctype html>{report.task}"
