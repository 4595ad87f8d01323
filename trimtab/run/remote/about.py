"""About: what a machine that measures says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.core.errors import InputError
from trimtab.run.fusable import SUPPORT
from trimtab.run.remote import wire
from trimtab.run.remote.client import Client, ask, nonsense

_LONGEST = 24 * 3600.0


@dataclass(frozen=True)
class About:
    """What a machine says of itself.

    Args:
        key: of what timings depend on there.
        processor: its name.
        runtimes: versions by name.
        max_bytes: of one file.
        max_seconds: of one job.
    """

    key: str
    processor: str
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
            runtimes=known,
            max_bytes=wire.whole(limits["bytes"], "bytes", 1 << 40),
            max_seconds=wire.number(limits["seconds"], "seconds", _LONGEST),
        )
    except InputError as error:
        raise nonsense(client, error) from error
