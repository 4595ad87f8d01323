"""Errors that name what, where, got, expected and what to do, on one line."""

from __future__ import annotations


class TrimtabError(Exception):
    """Base of every error that trimtab raises on purpose.

    The message is one line, built from the parts that are given::

        Prune: layer3.2.conv1: got keep=80, expected at most 64. Give keep <= 64.

    Args:
        what: the operation or word that failed, and why in a few words.
        where: the layer, file, line or option it failed at.
        got: what was found there.
        expected: what would have been right.
        do: what the user can do about it, a full sentence.
    """

    exit_status = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.do = what, where, got, expected, do
        line = what if where is None else f"{what}: {where}"
        facts = [f"got {got}"] if got is not None else []
        facts += [f"expected {expected}"] if expected is not None else []
        line += f": {', '.join(facts)}" if facts else ""
        line += f". {do}" if do else ""
        super().__init__(" ".join(line.split()))


class DivergedError(TrimtabError, RuntimeError):
    """A training whose loss is no number any more; a search goes on without that network."""


class InputError(TrimtabError):
    """What the user gave is wrong: a task, a setting, a file, a batch. Exit status 2."""


class CaptureError(InputError):
    """The network cannot be captured as a graph, or was captured as something else."""


class SurgeryError(InputError):
    """A cut was asked for that the graph cannot take."""


class FileError(InputError):
    """A file is missing, cut short, hostile, of another version, or cannot be written."""


class RuntimeMissing(InputError):
    """A runtime or library is not installed; the message names the extra to install."""


class ExportError(TrimtabError):
    """The exported artifact does not run, or does not agree with the graph it came from."""


class NotInteger(ExportError):
    """A quantised layer would run in floating point on this runtime."""


class NotRunnable(ExportError):
    """A device cannot run the artifact: an operator it lacks, or more memory than it has."""


class DeviceError(TrimtabError):
    """A machine that measures for us is gone, slow, wants another token, or answers nonsense."""


class GoalNotMet(TrimtabError):
    """No network found meets the goal; the nearest front was saved. Exit status 3."""

    exit_status = 3
