"""Say in one line why a network cannot be captured, and where in the user's code."""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from trimtab.core.errors import CaptureError

_BRANCH = "Replace the branch on tensor values by torch.where, or branch on shapes and settings only."
_LINE = "Write this line with tensor operations that torch.export can take."


def explained(error: Exception) -> CaptureError:
    """The error that torch.export met, as one line with the user's file and line and what to change."""
    message = str(error)
    dependent = any(words in message for words in ("data-dependent", "data dependent", "unbacked"))
    return CaptureError(
        "capture: the network's code depends on the values of a tensor"
        if dependent
        else "capture: torch.export cannot take the network",
        where=user_frame(error),
        got=first_line(error),
        do=_BRANCH if dependent else _LINE,
    )


def user_frame(error: BaseException) -> str | None:
    """The last frame outside torch and this package, as `file:line`, along the chain of causes."""
    homes = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    seen: BaseException | None = error
    while seen is not None:
        frames = [
            f
            for f in traceback.extract_tb(seen.__traceback__)
            if f.filename[0] != "<" and not f.filename.startswith(homes)
        ]
        if frames:
            return f"{frames[-1].filename}:{frames[-1].lineno}"
        seen = seen.__cause__ or seen.__context__
    return None


def brief(error: CaptureError) -> str:
    """What went wrong and where, to stand inside a note."""
    place = f" ({error.where})" if error.where is not None else ""
    return error.what.removeprefix("capture: ") + place


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's own log of a failed export off the terminal: the error says it in one line."""
    logger = logging.getLogger("torch")
    loggers = [logger, *(logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith("torch."))]
    levels = [item.level for item in loggers]
    for item in loggers:
        item.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in zip(loggers, levels, strict=True):
            item.setLevel(level)
