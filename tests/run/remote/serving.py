"""A real server on a free loopback port, in a thread; and one that answers what a test tells it to."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trimtab.run.remote.server import listen, server
from trimtab.run.remote.service import Service, service

TOKEN = "token-of-the-tests"


@contextmanager
def serving(max_bytes: int = 1 << 24, max_seconds: float = 60.0) -> Iterator[tuple[str, Service]]:
    """The address of a server that stops with the block, and its service."""
    offer = service(TOKEN, max_bytes, max_seconds)
    running = server(offer)
    with listen("127.0.0.1", 0) as opened:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not running.started and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}", offer
        finally:
            running.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@contextmanager
def answering(answer: Callable[[str], bytes | None]) -> Iterator[str]:
    """The address of a server that sends for each path just these bytes; for None nothing, until the block ends."""
    done = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = self.rfile.readline().decode("latin-1").split()[1]
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            said = answer(path)
            if said is None:
                done.wait(30)
            else:
                self.wfile.write(said)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_address[1]}"
        finally:
            done.set()
            made.shutdown()
            thread.join(10)


def http(body: bytes, status: int = 200) -> bytes:
    """An answer of HTTP."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)
