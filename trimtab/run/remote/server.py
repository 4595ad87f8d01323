"""Server: measures for others what they send, one job at a time, for those who show the token."""

from __future__ import annotations

import contextlib
import hmac
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core.errors import InputError, RuntimeMissing, TrimtabError
from trimtab.run.remote import jobs
from trimtab.run.remote.kept import INPUTS, MODELS, Kept
from trimtab.run.remote.service import Refused, Service

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

_KEEP = 4
"""All files together may have so many times the bytes of the largest one."""
_CONNECTIONS = 16
_FOLDER = re.compile(r"\S*trimtab-\S*/")
"""Where a file lies here."""


def app(offer: Service) -> ASGIApp:
    """The ASGI application of a service.

    Raises:
        RuntimeMissing: starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ImportError as error:
        raise RuntimeMissing("device", got="no starlette", do="Install it: pip install 'trimtab[serve]'.") from error

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="trimtab-device-") as folder:
            offer.kept = Kept(Path(folder), _KEEP * offer.max_bytes)
            yield

    def to(handler: Callable[[Service, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            return await handler(offer, request)

        return call

    routes = [Route("/v1/about", to(jobs.about), methods=["GET"])]
    routes += [Route(f"/v1/{kind}/{{digest}}", to(jobs.file), methods=["GET", "PUT"]) for kind in (MODELS, INPUTS)]
    routes += [Route(path, to(handler), methods=["POST"]) for path, handler in jobs.JOBS.items()]
    handlers: dict[Any, Any] = {Refused: _refused, TrimtabError: _failed, HTTPException: _http, Exception: _broken}
    return _guarded(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), offer.token)


def _guarded(inner: ASGIApp, token: str) -> ASGIApp:
    """The token is compared, in a time that does not depend on it, before anything else is read."""
    wanted = sha256(f"Bearer {token}".encode()).digest()

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(sha256(given).digest(), wanted):
                await _error(401, "Token", "the token is missing or wrong")(scope, receive, send)
                return
        await inner(scope, receive, send)

    return call


async def _refused(_: Request, error: Any) -> Response:
    return _error(error.status, error.kind, error.message)


async def _failed(_: Request, error: Any) -> Response:
    """A job or a file that is wrong; where the files lie here is nobody's business."""
    return _error(422, type(error).__name__, _FOLDER.sub("", str(error)))


async def _http(_: Request, error: Any) -> Response:
    return _error(error.status_code, "Request", str(error.detail))


async def _broken(_: Request, error: Any) -> Response:
    return _error(500, "Internal", f"{type(error).__name__}; see the log of `trimtab device`")


def _error(status: int, kind: str, message: str) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": {"kind": kind, "message": message}}, status)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one.

    Raises:
        InputError: the address is in use, or not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(
            "device: cannot listen", where=f"{host}:{port}", got=got, do="Give another --port or --host."
        ) from error


def server(offer: Service) -> uvicorn.Server:
    """A server to `run(sockets=[...])`; it stops at Ctrl-C, or once `should_exit` is set.

    Raises:
        RuntimeMissing: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise RuntimeMissing("device", got="no uvicorn", do="Install it: pip install 'trimtab[serve]'.") from error

    config = uvicorn.Config(
        app(offer),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)
