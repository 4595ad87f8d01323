"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from trimtab._version import VERSION
from trimtab.cli import files, machine, runs
from trimtab.core.errors import TrimtabError

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
    *(files.choose, files.verify, files.report),
    *(machine.profile, machine.targets, machine.probe, machine.doctor),
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: ends the process with the exit status."""
    sys.exit(status(sys.argv[1:] if arguments is None else arguments))


def status(arguments: Sequence[str]) -> int:
    """Run one command; what is wrong with the input becomes one line on stderr.

    Returns:
        0 done (for `fit`: the goal is met), 1 verify found a difference, 2 the input is wrong, 3 the goal is not met,
        130 stopped by Ctrl-C.
    """
    for name in ("torchao", "torch.utils._pytree"):  # they warn of CUDA kernels and names that we do not use
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = app(args=list(arguments), prog_name="trimtab", standalone_mode=False)
    except TrimtabError as error:
        return _said(str(error), error.exit_status)
    except typer.TyperException as error:  # an unknown option, a missing argument
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        return _said(f"{' '.join(text.split()).rstrip('.')}. See `trimtab --help`.", 2)
    except KeyboardInterrupt:
        code = 130
    except (OSError, sqlite3.OperationalError) as error:
        if _full(error):
            return _said(f"no space left on the disk: {error}. Free space, then run the same command again.", 2)
        raise
    if code == 130:
        return _said("stopped; resumable: run the same command again.", 130)
    return code if isinstance(code, int) else 0


def _said(line: str, code: int) -> int:
    print(f"trimtab: {line}", file=sys.stderr)
    return code


def _full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL


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
