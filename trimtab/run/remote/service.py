"""Service: what a serving machine offers, how it reads what it is asked, and the fresh process that each job gets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab._version import VERSION
from trimtab.core.errors import InputError
from trimtab.hardware.machine import machine
from trimtab.run import runtimes
from trimtab.run.clean import COMMAND, answer, question
from trimtab.run.remote import wire
from trimtab.run.remote.kept import Kept

if TYPE_CHECKING:
    from starlette.requests import Request

_UPLOAD_SECONDS = 120.0


class Refused(Exception):
    """A request that is not done.

    Args:
        status: of HTTP.
        kind: one word.
        message: one line.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        super().__init__(message)


@dataclass
class Service:
    """What a serving machine offers, and whether it is at work.

    Args:
        token: what a client must show.
        max_bytes: of one file.
        max_seconds: of one job.
        about: the answer to `GET /v1/about`.
        kept: the files; there while it serves.
        busy: a job is under way.
    """

    token: str = field(repr=False)
    max_bytes: int
    max_seconds: float
    about: dict[str, Any]
    kept: Kept | None = None
    busy: bool = False


def service(token: str, max_bytes: int = 256 << 20, max_seconds: float = 600.0) -> Service:
    """A service of this machine and the runtimes that are installed on it."""
    here = machine()
    about = {
        "schema": wire.SCHEMA,
        "trimtab": VERSION,
        "key": here.key(),
        "machine": here.json(),
        "runtimes": {r.name: r.version() for r in runtimes()},
        "limits": {"bytes": max_bytes, "seconds": max_seconds},
    }
    return Service(token, max_bytes, max_seconds, about)


@contextlib.contextmanager
def alone(offer: Service) -> Iterator[Kept]:
    """One job at a time: another one would change the time of this one."""
    if offer.busy or offer.kept is None:
        raise Refused(503, "Busy", "another job is under way")
    offer.busy = True
    try:
        yield offer.kept
    finally:
        offer.busy = False


async def body_of(request: Request, limit: int) -> bytes:
    """The whole body, if it is not too large and comes in time."""
    said = request.headers.get("content-length", "0")
    parts, count = [], 0
    too_large = Refused(413, "TooLarge", f"at most {limit} bytes")
    if not said.isdigit() or int(said) > limit:
        raise too_large
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            async for chunk in request.stream():
                parts.append(chunk)
                count += len(chunk)
                if count > limit:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, "Slow", f"the request took more than {_UPLOAD_SECONDS:.0f} s") from error
    return b"".join(parts)


async def asked_of(request: Request, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        return wire.object_of(wire.loads(await body_of(request, wire.JSON_BYTES)), names, "request")
    except InputError as error:
        raise Refused(400, "Request", str(error)) from error


async def clean(offer: Service, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Ask a fresh process, which is ended when it takes too long or when we are."""
    pipe = asyncio.subprocess.PIPE
    without = {name: value for name, value in os.environ.items() if name != wire.TOKEN}
    process = await asyncio.create_subprocess_exec(*COMMAND, stdin=pipe, stdout=pipe, stderr=pipe, env=without)
    try:
        async with asyncio.timeout(offer.max_seconds):
            out, err = await process.communicate(question(function, arguments).encode())
    except TimeoutError as error:
        raise Refused(504, "Slow", f"the job took more than {offer.max_seconds:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return answer(function, process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
