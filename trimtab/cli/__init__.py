"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
from collections.abc import Sequence

from trimtab.core.errors import InputError, TrimtabError


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
        code = _run(arguments)
    except TrimtabError as error:
        return _said(str(error), error.exit_status)
    except KeyboardInterrupt:
        code = 130
    except (OSError, sqlite3.OperationalError) as error:
        if _full(error):
            return _said(f"no space left on the disk: {error}. Free space, then run the same command again.", 2)
        raise
    if code == 130:
        return _said("stopped; resumable: run the same command again.", 130)
    return code if isinstance(code, int) else 0


def _run(arguments: Sequence[str]) -> object:
    """Parse and call; imported here, so that Ctrl-C is answered while it still loads."""
    import typer

    from trimtab.cli.app import app

    try:
        return app(args=list(arguments), prog_name="trimtab", standalone_mode=False)
    except typer.TyperException as error:  # an unknown option, a missing argument
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        raise InputError(f"{' '.join(text.split()).rstrip('.')}. See `trimtab --help`.") from error


def _said(line: str, code: int) -> int:
    print(f"trimtab: {line}", file=sys.stderr)
    return code


def _full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL
