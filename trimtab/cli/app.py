"""App: the commands, and how they are parsed."""

from __future__ import annotations

from typing import Annotated

import typer

from trimtab._version import VERSION
from trimtab.cli import coded, device, distil, explain, files, lottery, machine, profile, runs

app = typer.Typer(
    help="Makes a trained network fit the hardware that it must run on.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    *(runs.fit, runs.compress, runs.apply),
    distil.distil,
    *(files.choose, files.verify, explain.explain, files.report),
    lottery.lottery,
    *(coded.encode, coded.decode),
    device.device,
    *(profile.profile, machine.targets, machine.probe, machine.doctor),
):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"trimtab {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes a trained network fit the hardware that it must run on."""
