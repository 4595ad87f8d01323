"""Target: the device and runtime that the network must run on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trimtab.core.errors import InputError

RUNTIMES = ("onnxruntime", "openvino", "executorch", "inductor")
"""Runtimes of this machine's processor, each a target by its own name."""
_SETTINGS = ("batch", "threads", "precision")
_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")
_TEXT = re.compile(r"(?P<what>.+?)(?::(?P<settings>[a-z]+=[^:/]*))?")


@dataclass(frozen=True)
class Target:
    """What it must run on.

    Args:
        device: `cpu` is this machine's processor; the name of another device; the address of a machine that
            measures for us (`http://board:7070`); or a file that describes a device (`./board.toml`).
        runtime: of this machine's processor, one of `RUNTIMES`; None for the fastest of those that `cpu` tries.
        batch: batch size that latency is for.
        threads: threads that latency is for.
        precision: `int8` or `fp32`: the lowest precision that may be used.
    """

    device: str = "cpu"
    runtime: str | None = None
    batch: int = 1
    threads: int = 1
    precision: str = "int8"

    @property
    def name(self) -> str:
        """The text that `parse` reads back, without the settings that have their default."""
        parts = [f"{k}={getattr(self, k)}" for k in _SETTINGS if getattr(self, k) != getattr(Target, k)]
        return ":".join([self.runtime or self.device, *([",".join(parts)] if parts else [])])


def parse(text: str) -> Target:
    """Read a target with its settings: `cpu`, `openvino:batch=8,threads=2`, `ethos-u55-128`, `http://board:7070`.

    Whether there is such a device is for `pipeline.devices.device_of` to say.
    """
    match = _TEXT.fullmatch(text)
    name, rest = (match["what"], match["settings"] or "") if match else (text, "")
    if not (name.startswith(("http://", "https://")) or name.endswith(".toml") or _NAME.fullmatch(name)):
        raise InputError(
            "target",
            got=repr(text),
            expected="a device such as cpu or ethos-u55-128, an http:// address or a .toml file",
            do="See `trimtab targets`.",
        )
    settings: dict[str, int | str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _SETTINGS:
            raise InputError("target", where=text, got=repr(key), expected=f"one of {', '.join(_SETTINGS)}")
        if key == "precision":
            if value not in ("fp32", "int8"):
                raise InputError("target: precision", got=repr(value), expected="fp32 or int8")
            settings[key] = value
        elif value.isdigit() and int(value) > 0:
            settings[key] = int(value)
        else:
            raise InputError(f"target: {key}", got=repr(value), expected="a whole number above 0")
    own = name in RUNTIMES
    return Target("cpu" if own else name, name if own else None, **settings)  # type: ignore[arg-type]
