"""Distil: a student learns from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import trimtab
from trimtab.cli.options import Json, Out, Seed, TargetName
from trimtab.cli.runs import printed, refuse_file
from trimtab.cli.show import Bars
from trimtab.core.errors import InputError
from trimtab.core.target import parse

if TYPE_CHECKING:
    from trimtab.core.task import Task

_METHOD = "METHOD[:WEIGHT]"


def distil(
    teacher: Annotated[
        str,
        typer.Argument(metavar="TEACHER", help="A task, or a folder with a saved network.", show_default=False),
    ],
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="The task whose model learns, with the data.", show_default=False)
    ],
    steps: Annotated[int | None, typer.Option(min=1, help="Batches to train on.", show_default=False)] = None,
    hours: Annotated[
        float | None, typer.Option(help="In place of steps: time to train the student for.", show_default=False)
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--teacher", metavar="TEACHER", help="A further teacher; may be repeated.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with new weights, not with the model's.")] = False,
    temperature: Annotated[float, typer.Option(help="T, softens both networks' probabilities.")] = 4.0,
    alpha: Annotated[float, typer.Option(help="Share of the labels' loss, 0 to 1.")] = 0.1,
    features: Annotated[
        str | None, typer.Option(metavar=_METHOD, help="fitnets or attention, such as fitnets:10.")
    ] = None,
    relations: Annotated[
        str | None,
        typer.Option(metavar=_METHOD, help="distance, angle, rkd, similarity or contrastive, such as rkd:5."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.", show_default="by the network")] = None,
    out: Out = None,
    target: TargetName = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Train a student on what a teacher answers, beside the same student trained alone."""
    settings: dict[str, Any] = {"temperature": temperature, "alpha": alpha}
    settings |= {name: _method(f"--{name}", text) for name, text in _given(features=features, relations=relations)}
    settings |= {} if lr is None else {"lr": lr}
    device = parse(target)
    refuse_file(out)
    from trimtab.pipeline.load import load_task

    teachers = [_teacher(each) for each in (teacher, *(more or ()))]
    task = load_task(student)
    with Bars() as bars:
        result = trimtab.distil(
            teachers,
            task,
            steps=steps,
            hours=hours,
            settings=settings,
            fresh=fresh,
            target=device,
            out=out,
            seed=seed,
            progress=bars,
        )
    printed(result, json)
    return 0


def _given(**options: str | None) -> list[tuple[str, str]]:
    return [(name, text) for name, text in options.items() if text is not None]


def _method(option: str, text: str) -> dict[str, Any]:
    """`fitnets:10` as settings."""
    name, colon, weight = text.partition(":")
    try:
        return {"method": name.strip()} | ({"weight": float(weight)} if colon else {})
    except ValueError as error:
        raise InputError(f"option {option}", got=repr(text), expected=f"{_METHOD}, such as fitnets:10") from error


def _teacher(text: str) -> Task | Path:
    """A folder with a saved network, else a task."""
    from trimtab.pipeline.load import BUILT_IN, load_task

    folder = Path(text)
    if (folder / "model.trim.json").is_file():
        return folder
    if folder.is_dir() and text not in BUILT_IN:
        do = "Give the folder of a run, or a task."
        raise InputError("distil: the teacher's folder holds no network", where=folder, do=do)
    return load_task(text)
