"""Page: report.html of a run, in one file that needs nothing beside it and runs no script."""

from __future__ import annotations

from pathlib import Path

from trimtab.core.store import write_atomic
from trimtab.report import sections
from trimtab.report.costs import costs
from trimtab.report.html import element, raw
from trimtab.report.read import Report, read
from trimtab.report.style import CSS

SECTIONS = (
    sections.compared,
    sections.front,
    sections.plan,
    sections.layers,
    costs,
    sections.dropped,
    sections.failed,
    sections.notes,
    sections.time_spent,
    sections.machine,
    sections.replay,
)
"""In the order of the page. To add one: a function of a Report, and a line here."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser loads nothing and runs nothing, whatever a report says."""


def write(folder: Path | str) -> Path:
    """Write `report.html` beside `report.json`, and return its path.

    Raises:
        FileError: report.json is missing, damaged, or not what trimtab writes.
    """
    made = page(read(folder))
    path = Path(folder) / "report.html"
    write_atomic(path, lambda p: p.write_text(made, encoding="utf-8"))
    return path


def page(report: Report) -> str:
    """The whole page; every text of the report is escaped."""
    parts = [made for section in SECTIONS if (made := section(report)) is not None]
    foot = element("footer", f"Made by trimtab {report.version}, seed {report.seed}.")
    return document(report.task, sections.head(report), *parts, foot)


def document(title: str, *parts: object) -> str:
    """A page of parts, in the look of a run's report; texts among them are escaped."""
    top = element(
        "head",
        raw('<meta charset="utf-8">'),
        raw('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        raw(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", f"{title} – trimtab"),
        element("style", raw(CSS)),
    )
    body = element("body", element("main", *parts))
    return f"<!doctype html>\n{element('html', top, body, lang='en')}\n"
