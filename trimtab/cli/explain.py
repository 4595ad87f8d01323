"""Explain: which layer of a run's network cost what in accuracy."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli.files import is_run
from trimtab.cli.options import Address, Folder, Json
from trimtab.cli.show import Bars, as_json, table
from trimtab.core.target import parse


def explain(
    folder: Folder,
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="The task of the run.", show_default=False)],
    target: Address = None,
    json: Json = False,
) -> int:
    """Rank the layers of a run's network by what their quantisation cost."""
    is_run(folder)
    from trimtab.pipeline.explain import explain as run
    from trimtab.pipeline.load import load_task
    from trimtab.report.explain import rows, summary, write_explanation

    found = load_task(task)
    with Bars() as bars:
        made = run(folder, found, target=parse(target) if target is not None else None, progress=bars)
    page = write_explanation(made, folder)
    if json:
        as_json(made.json())
        return 0
    head, body = rows(made)
    table(head, body, right=range(1, len(head)))
    print()
    print(*summary(made), sep="\n")
    print(f"page  {page}")
    return 0
