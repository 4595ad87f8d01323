"""Device: serve this machine as a target to others."""

from __future__ import annotations

import ipaddress
import os
import secrets
import sys
from typing import Annotated

import typer

from trimtab.core.errors import InputError

_TOKEN = "TRIMTAB_TOKEN"
_SHORTEST = 16


def device(
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; 0 takes a free one.")] = 7070,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(help=f"That a client must show; {_TOKEN} is safer.", show_default="one that is made and printed"),
    ] = None,
    max_mb: Annotated[
        int, typer.Option("--max-mb", min=1, max=1 << 20, help="Megabytes that one file may have.")
    ] = 256,
) -> int:
    """Let others use this machine as a target: it times what they send."""
    given = token if token is not None else os.environ.get(_TOKEN)
    secret = _checked(given, host) if given is not None else secrets.token_urlsafe(24)
    from trimtab.run.remote.server import listen, server
    from trimtab.run.remote.service import service

    offer = service(secret, max_mb * 1_000_000)
    serving = server(offer)
    with listen(host, port) as opened:
        where = f"[{host}]" if ":" in host else host
        names = ", ".join(f"{name} {version}" for name, version in offer.about["runtimes"].items())
        print(f"serving   {offer.about['machine']['processor']}: {names}")
        print(f"target    http://{where}:{opened.getsockname()[1]}")
        print(f"token     {'as given' if given is not None else secret}  (there: export {_TOKEN}=...)")
        if not _loopback(host):
            print("trimtab: the token travels unencrypted: serve on a network that you trust.", file=sys.stderr)
        sys.stdout.flush()
        serving.run(sockets=[opened])
    return 0


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _checked(token: str, host: str) -> str:
    """A token that can stand in a header, and is not guessed where others can try."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("option --token", got="no such token", expected="printable ASCII characters without spaces")
    if not _loopback(host) and len(token) < _SHORTEST:
        expected = f"at least {_SHORTEST} where other machines can reach it"
        raise InputError("option --token", got=f"{len(token)} characters", expected=expected)
    return token
