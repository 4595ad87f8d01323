"""About: what a machine that measures says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import InputError
from trimtab.run.fusable import SUPPORT
from trimtab.run.remote import wire
from trimtab.run.remote.client import Client, ask, nonsense

_LONGEST = 24 * 3600.0
_MOST = 1 << 50
_FEW = 64


@dataclass(frozen=True)
class About:
    """What a machine says of itself.

    Args:
        key: of what timings depend on there.
        processor: its name.
        machine: all that it says of its processor, memory, system and libraries, as `hardware.machine.Machine` has it.
        runtimes: versions by name.
        max_bytes: of one file.
        max_seconds: of one job.
    """

    key: str
    processor: str
    machine: Mapping[str, Any]
    runtimes: Mapping[str, str]
    max_bytes: int
    max_seconds: float


def about(client: Client) -> About:
    """What a machine says of itself, checked.

    Raises:
        DeviceError: it does not answer as `trimtab device` does.
    """
    said = ask(client, "/v1/about")
    try:
        found = wire.object_of(said, ("schema", "trimtab", "key", "machine", "runtimes", "limits"), "about")
        wire.whole(found["schema"], "schema", wire.SCHEMA, wire.SCHEMA)
        limits = wire.object_of(found["limits"], ("bytes", "seconds"), "limits")
        known = {n: v for n, v in wire.named(found["runtimes"], "runtimes").items() if n in SUPPORT}
        if not known or not isinstance(found["machine"], dict):
            raise InputError("about", got=wire.shown(found["runtimes"]), expected="a machine with a runtime")
        return About(
            key=wire.text(found["key"], "key"),
            processor=wire.text(found["machine"].get("processor"), "processor"),
            machine=_machine(found["machine"]),
            runtimes=known,
            max_bytes=wire.whole(limits["bytes"], "bytes", 1 << 40),
            max_seconds=wire.number(limits["seconds"], "seconds", _LONGEST),
        )
    except InputError as error:
        raise nonsense(client, error) from error


def _machine(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Machine` that are there, each checked; whatever else is there is left out.

    Raises:
        InputError: a field is something else.
    """
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name in ("processor", "system", "python"):
            found[name] = wire.text(value, name)
        elif name in ("cores", "usable", "memory"):
            found[name] = wire.whole(value, name, _MOST)
        elif name == "flags":
            if not isinstance(value, list) or len(value) > _FEW:
                raise InputError(name, got=wire.shown(value), expected="a list of short texts")
            found[name] = [wire.text(flag, name) for flag in value]
        elif name == "libraries":
            found[name] = dict(wire.named(value, name))
        elif name == "caches":
            if not isinstance(value, dict) or len(value) > _FEW:
                raise InputError(name, got=wire.shown(value), expected="bytes by level")
            found[name] = {wire.text(level, name): wire.whole(size, name, _MOST) for level, size in value.items()}
    return found
