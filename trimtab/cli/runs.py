"""Runs: fit, compress and apply, which make a folder with a network in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import trimtab
from trimtab.cli.options import Json, Out, Seed, TargetName, TaskName, Wishes
from trimtab.cli.show import Bars, as_json, lines, note, table
from trimtab.core.errors import InputError
from trimtab.core.goal import Goal
from trimtab.core.metric import show
from trimtab.core.plan import Plan
from trimtab.core.target import Target, parse

if TYPE_CHECKING:
    from trimtab.core.task import Task
    from trimtab.pipeline.fit import Result

_Bound = "NAME=QTY"


def fit(
    task: TaskName,
    target: TargetName = "cpu",
    minimise: Annotated[str, typer.Option(metavar="METRIC", help="The metric to make best.")] = "latency",
    max_drop: Annotated[
        str | None,
        typer.Option(metavar="DROP", help="Score that may be lost: 0.01, 1%, none.", show_default="0.01"),
    ] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(metavar=_Bound, help="An upper bound, such as latency=2ms; may be repeated.")
    ] = None,
    at_least: Annotated[
        list[str] | None, typer.Option(metavar=_Bound, help="A lower bound, such as score=0.9; may be repeated.")
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(metavar="X", help="Short for --at-least latency_ratio=X.", show_default=False)
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(metavar="QTY", help="Short for --at-most latency=QTY.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="QTY", help="Short for --at-most size=QTY.", show_default=False)
    ] = None,
    hours: Annotated[float, typer.Option(help="Wall-clock time; the control's training is not counted.")] = 0.5,
    seed: Seed = 0,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step of everything, and estimates; makes nothing.")
    ] = False,
    no_control: Annotated[
        bool,
        typer.Option("--no-control", help="Do not train the original alongside; the drop counts against it as is."),
    ] = False,
    json: Json = False,
) -> int:
    """Find the smallest, fastest network that meets a goal."""
    goal = Wishes(minimise, max_drop, at_most or (), at_least or (), min_speedup, max_latency, max_size, hours).goal()
    device = parse(target)
    refuse_file(out)
    found = _task(task)
    if dry_run:
        return _preflight(found, device, goal, seed, json)
    with Bars() as bars:
        result = trimtab.fit(found, device, goal, out=out, seed=seed, progress=bars, control=not no_control)
    printed(result, json)
    if result.met:
        return 0
    note(
        f"the goal is not met: {result.binding or 'a bound'} binds. The nearest front is in {result.folder / 'front'}."
    )
    return 3


def compress(
    task: TaskName,
    steps: Annotated[
        list[str],
        typer.Option("--with", metavar="STEP", help="'prune(ratio=0.5)', 'quantise(bits=8)', ...; in order."),
    ],
    out: Out = None,
    target: TargetName = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Do the named steps, in order, and measure the result."""
    from trimtab.compress.plan import recipe

    chain = [recipe(text) for text in steps]
    device = parse(target)
    refuse_file(out)
    found = _task(task)
    from trimtab.pipeline.load import run_folder

    with Bars() as bars:
        folder = run_folder(found, out)
        result = trimtab.compress(found, chain, target=device, out=folder, seed=seed, progress=bars)
    printed(result, json)
    return 0


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="The plan of a run.", show_default=False)],
    task: TaskName,
    out: Out = None,
    target: TargetName = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Replay a plan on a task."""
    device = parse(target)
    refuse_file(out)
    from trimtab.core.store import read_json

    decided = Plan.of_json(read_json(plan), plan)
    found = _task(task)
    from trimtab.pipeline.compress import apply_to
    from trimtab.pipeline.load import run_folder
    from trimtab.report import write

    with Bars() as bars:
        result = apply_to(decided, found, target=device, out=run_folder(found, out), seed=seed, progress=bars)
    write(result.folder)
    printed(result, json)
    return 0


def refuse_file(out: Path | None) -> None:
    """Before a task is loaded, which may take long."""
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("option --out", got=f"{out}, a file", expected="a folder")


def _task(text: str) -> Task:
    from trimtab.pipeline.load import load_task

    return load_task(text)


def _preflight(task: Task, target: Target, goal: Goal, seed: int, json: bool) -> int:
    from trimtab.pipeline.preflight import preflight

    with Bars() as bars:
        found = preflight(task, target, goal, seed=seed, progress=bars)
    if json:
        as_json(found)
        return 0
    checks: list[dict[str, Any]] = found["checks"]
    rows = [(c["step"], "ok" if c["ok"] else f"fails: {c['error']}", show(c["seconds"], "s")) for c in checks]
    table(("step", "", "time"), rows, right=(2,))
    print()
    lines(_estimates(found["estimate"]))
    for sentence in found["notes"]:
        note(sentence)
    return 0 if found["ok"] else 2


def _estimates(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run will take, in words."""
    for name, seconds in found["seconds"].items():
        yield f"time, {name}", show(seconds, "s") if seconds < 120 else f"{seconds / 60:.0f} min"
    yield "memory", show(found["memory"], "byte")
    yield "disk", show(found["disk"], "byte")
    yield "choices", f"{found['choices']:,}"
    yield "training steps in a minute", f"{found['steps_per_minute']:,}"


def printed(result: Result, json: bool) -> None:
    """A run's summary, or its report as JSON."""
    if json:
        as_json(result.report)
        return
    from trimtab.report import parse as parse_report
    from trimtab.report.words import summary

    head, rows = summary(parse_report(result.report))
    table(head, rows, right=range(1, len(head) - 1))
    print(f"\nreport  {result.folder / 'report.html'}")
