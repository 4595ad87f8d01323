"""Lottery: a sparse part of a network that trains as well as the whole."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab.cli.options import Json, Out, Seed, TaskName
from trimtab.cli.show import Bars, as_json, table
from trimtab.core.metric import Metric, show


def lottery(
    task: TaskName,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often weights go.")] = 8,
    rate: Annotated[float, typer.Option(help="The share of the weights left that goes each time.")] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Batches of each training.")] = 400,
    rewind: Annotated[int, typer.Option(min=0, help="The step that weights return to; 0 is the start.")] = 0,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.05,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Look for winning lottery tickets, beside random masks and other starts."""
    from trimtab.pipeline.load import load_task, run_folder
    from trimtab.pipeline.lottery import FILE
    from trimtab.pipeline.lottery import lottery as run

    found = load_task(task)
    folder = run_folder(found, out if out is not None else f"runs/{found.name}-lottery")
    with Bars() as bars:
        made = run(
            found,
            rounds=rounds,
            rate=rate,
            steps=steps,
            rewind=rewind,
            train={"lr": lr},
            out=folder,
            seed=seed,
            progress=bars,
        )
    if json:
        as_json(made.json())
        return 0
    head = ("weights left", "share", "ticket", "random mask", "other start", "")
    rows: list[tuple[str, ...]] = [("all", "100 %", _told(made.dense), "", "", "")]
    rows += [
        (
            f"{v.left:,}",
            f"{100 * v.share:.1f} %",
            *map(_told, (v.ticket, v.random, v.fresh)),
            "sparsest winning ticket" if i == made.winner else "",
        )
        for i, v in enumerate(made.levels)
    ]
    table(head, rows, right=range(5))
    if made.stopped is not None:
        print(f"\nStopped at {made.stopped}")
    print(f"\n{made.dense.split} data, 95 % intervals; {folder / FILE}")
    return 0


def _told(found: Metric) -> str:
    if found.interval is None:
        return show(found.value, found.unit)
    low, high = (show(value, found.unit).removesuffix(" %") for value in found.interval)
    return f"{show(found.value, found.unit)} [{low}, {high}]"
