"""Client: asks a machine that measures. Every wait is bounded, and nothing that it answers is believed unchecked."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NoReturn
from urllib.parse import urlsplit

from trimtab.core.errors import DeviceError, InputError
from trimtab.run.clean import ERRORS
from trimtab.run.remote import wire

CONNECT_SECONDS = 10.0
PAUSES = (0.5, 2.0, 5.0)
"""Seconds before each further try where the machine is gone."""
BUSY_SECONDS = 120.0
"""How long to wait for a machine that measures for someone else."""
ANSWER_BYTES = 16 << 20
_SLOWEST = 1e5
"""Bytes in a second that a network moves at least."""


@dataclass(frozen=True)
class Client:
    """An address and its token.

    Args:
        url: `http://board:7070`, checked by `address`.
        token: that the machine wants to see.
        pauses: before each further try where it is gone.
        patience: s to wait while it is busy.
    """

    url: str
    token: str = field(repr=False)
    pauses: tuple[float, ...] = PAUSES
    patience: float = BUSY_SECONDS


def address(url: str) -> str:
    """A checked address.

    Raises:
        InputError: it is none, or holds more than scheme, host and port: above all a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise InputError(
            "target: a name or password in the address",
            do=f"Leave it out, and set {wire.TOKEN} to the device's token.",
        )
    more = parts.path.strip("/") + parts.query + parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or more:
        raise InputError("target", got=wire.shown(url), expected="an address such as http://board:7070")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}"


def ask(client: Client, path: str, question: Mapping[str, Any] | None = None, seconds: float = CONNECT_SECONDS) -> Any:
    """The JSON that a machine answers; a question is posted.

    Args:
        client: whom to ask.
        path: such as `/v1/time`.
        question: as JSON; None to get.
        seconds: that the answer may take.

    Raises:
        DeviceError: gone, slow, another token, nonsense, or busy for too long. TrimtabError: what went wrong there.
    """
    body = None if question is None else json.dumps(question, allow_nan=False).encode()
    data = _answered(client, "GET" if body is None else "POST", path, body, seconds)
    try:
        return wire.loads(data)
    except InputError as error:
        raise nonsense(client, f"{path}: {error}") from error


def fetch(client: Client, path: str, question: Mapping[str, Any], seconds: float) -> bytes:
    """The bytes that a machine answers (see `ask`)."""
    return _answered(client, "POST", path, json.dumps(question, allow_nan=False).encode(), seconds)


def sent(client: Client, kind: str, data: bytes) -> str:
    """The name of a file there; it is sent if it is not there yet.

    Args:
        client: whom to send to.
        kind: `models` or `inputs`.
        data: its bytes.
    """
    digest = sha256(data).hexdigest()
    path = f"/v1/{kind}/{digest}"
    try:
        _answered(client, "GET", path, None, CONNECT_SECONDS)
    except NotThere:
        _answered(client, "PUT", path, data, 2 * CONNECT_SECONDS + len(data) / _SLOWEST)
    return digest


def nonsense(client: Client, got: object) -> DeviceError:
    """The error of an answer that cannot be."""
    return DeviceError(
        "device answers nonsense",
        where=client.url,
        got=got,
        do="Is `trimtab device` what listens there, and of this version?",
    )


class NotThere(Exception):
    """The machine has no such file."""


def _answered(client: Client, method: str, path: str, body: bytes | None, seconds: float) -> bytes:
    """The body of a good answer, with tries again while the machine is gone or busy."""
    pauses, end = list(client.pauses), time.monotonic() + client.patience
    while True:
        try:
            status, data = _once(client, method, path, body, seconds)
        except ConnectionError as error:
            if not pauses:
                raise DeviceError(
                    "device is gone",
                    where=client.url,
                    got=error.strerror or type(error).__name__,
                    do="Start `trimtab device` there, then run the same command again.",
                ) from error
            time.sleep(pauses.pop(0))
            continue
        if status != 503 or time.monotonic() > end:
            return _good(client, status, data)
        time.sleep(0.5)


def _once(client: Client, method: str, path: str, body: bytes | None, seconds: float) -> tuple[int, bytes]:
    """One request, ended by its deadline however slowly the other side drips. No redirects, no proxies."""
    parts = urlsplit(client.url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = make(str(parts.hostname), parts.port, timeout=min(CONNECT_SECONDS, seconds))
    late = threading.Event()
    timer = threading.Timer(seconds, _cut, (held := [], late))
    timer.daemon = True
    try:
        connection.connect()
        held.append(connection.sock)
        connection.sock.settimeout(seconds)
        timer.start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered before it had read all
            connection.request(method, path, body, {"Authorization": f"Bearer {client.token}"})
        with connection.getresponse() as response:
            data, left = response.read(ANSWER_BYTES + 1), response.length
    except (OSError, http.client.HTTPException) as error:
        _explain(client, error, late.is_set(), seconds)
    finally:
        timer.cancel()
        connection.close()
    if late.is_set():
        _explain(client, TimeoutError(), True, seconds)
    if len(data) > ANSWER_BYTES:
        raise nonsense(client, f"{path}: more than {ANSWER_BYTES >> 20} MiB")
    if left:
        raise nonsense(client, f"{path}: an answer cut short by {left} bytes")
    return response.status, data


def _cut(held: list[socket.socket], late: threading.Event) -> None:
    late.set()
    for sock in held:
        with contextlib.suppress(OSError):  # it ended by itself
            sock.shutdown(socket.SHUT_RDWR)


def _explain(client: Client, error: Exception, late: bool, seconds: float) -> NoReturn:
    if late or isinstance(error, TimeoutError):
        raise DeviceError(
            "device is slow",
            where=client.url,
            got=f"no answer in {seconds:.0f} s",
            do="Is it switched on, and does nothing else run on it? Then run the same command again.",
        ) from error
    if isinstance(error, ConnectionError):
        raise error
    if isinstance(error, http.client.HTTPException):
        raise nonsense(client, f"no HTTP: {type(error).__name__}")
    got = getattr(error, "strerror", None) or error
    raise DeviceError("device cannot be reached", where=client.url, got=got, do="Check the address.") from error


def _good(client: Client, status: int, data: bytes) -> bytes:
    """The body of an answer, or the error that it stands for."""
    if status in (200, 201):
        return data
    kind, message = _error_of(client, status, data)
    if status == 401:
        do = f"Set {wire.TOKEN} to the token that `trimtab device` was given or printed."
        raise DeviceError("device wants another token", where=client.url, do=do)
    if status == 404 and kind == "Unknown":
        raise NotThere
    if status == 413:
        raise InputError("device", where=client.url, got=message, do="Start it with a greater --max-mb.")
    if status == 503:
        do = "Wait until it is done, then run the same command again."
        raise DeviceError("device measures for someone else", where=client.url, do=do)
    if status in (408, 504):
        raise DeviceError("device is slow", where=client.url, got=message)
    if status == 422 and kind in ERRORS:
        raise ERRORS[kind]("device", where=client.url, got=message)
    raise nonsense(client, f"HTTP status {status}: {kind}: {message}")


def _error_of(client: Client, status: int, data: bytes) -> tuple[str, str]:
    try:
        error = wire.object_of(wire.loads(data), ("error",), "answer")["error"]
        found = wire.object_of(error, ("kind", "message"), "error")
        message = "".join(c if c.isprintable() else " " for c in str(found["message"])[:500])
        return wire.text(found["kind"], "kind"), message
    except InputError as error:
        if status in (401, 503):  # said by what stands before it
            return "", ""
        raise nonsense(client, f"HTTP status {status}, {error}") from error
