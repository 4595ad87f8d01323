"""Files: choose, verify and report, which work on the folder that a run left."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli.options import Address, Folder, Json
from trimtab.cli.show import Bars, as_json, note, table
from trimtab.core.errors import FileError
from trimtab.core.target import parse


def choose(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A point of the front.", show_default=False)],
) -> int:
    """Make another point of the front the chosen one."""
    is_run(folder)
    from trimtab.pipeline.choose import choose as run
    from trimtab.report import write

    run(folder, name)
    print(f"{name} is now the chosen network of {folder}; report  {write(folder)}")
    return 0


def verify(
    folder: Folder,
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="The task, to score it again.", show_default=False)
    ] = None,
    target: Address = None,
    json: Json = False,
) -> int:
    """Measure a run's network again, in a clean process."""
    is_run(folder)
    from trimtab.pipeline.load import load_task
    from trimtab.pipeline.verify import verify as run

    found = None if task is None else load_task(task)
    with Bars() as bars:
        outcome = run(folder, found, target=parse(target) if target is not None else None, progress=bars)
    if json:
        as_json({"ok": outcome.ok, "rows": [vars(row) for row in outcome.rows]})
    else:
        rows = [(r.name, r.reported, r.measured, "ok" if r.ok else "differs", r.note) for r in outcome.rows]
        table(("", "reported", "measured", "", ""), rows, right=(1, 2))
    if not outcome.ok:
        note(f"{folder} differs from its report.")
    return 0 if outcome.ok else 1


def report(folder: Folder) -> int:
    """Write the page of a run again."""
    is_run(folder)
    from trimtab.report import write

    print(write(folder))
    return 0


def is_run(folder: Folder) -> None:
    """FileError unless a run left this folder."""
    if not (folder / "report.json").is_file():
        got = "no such folder" if not folder.exists() else "no report.json in it"
        raise FileError("run", where=folder, got=got, do="Give the folder that `trimtab fit --out` wrote.")
