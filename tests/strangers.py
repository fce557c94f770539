"""A worker with a good ticket that is not one of ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from patience import PATIENCE_S
from pools import drop, invited

from batchd import __version__
from batchd.pool import code
from batchd.pool.joining import ticket
from tests.conftest import Spool


class Stranger:
    """Speaks the protocol by hand."""

    def __init__(self, line: str, source: str = "127.0.0.1") -> None:
        """``source``: the address that it comes from."""
        way = ticket.parse(line)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection((way.host, way.port), source_address=(source, 0))
        self._socket = context.wrap_socket(plain)
        self._socket.settimeout(PATIENCE_S)
        self._buffer = b""
        self._token = way.token

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Beat its heart, and do nothing else."""
        over = threading.Event()

        def beat() -> None:
            number = 1
            while not over.wait(0.5):
                number += 1
                self.say("Heartbeat", rss=1, number=number)

        heart = threading.Thread(target=beat)
        heart.start()
        try:
            yield
        finally:
            over.set()
            heart.join()

    def join(self, token: str = "") -> Stranger:
        """Show the ticket, and say Hello."""
        self.say(
            "Join",
            token=token or self._token,
            version=__version__,
            code=code.content(),
            python=code.python(),
            node="stranger",
            pid=4242,
            parting=hashlib.sha256(b"word").hexdigest(),
        )
        return self

    def greet(self) -> Stranger:
        """Say Hello, and beat once."""
        assert self.hear("Hello")
        self.say("Hello", version=__version__, pid=4242)
        self.say("Heartbeat", rss=1, number=1)
        return self

    def say(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        self.frame(json.dumps([kind, fields]).encode())

    def frame(self, *bodies: bytes) -> None:
        """Send frames, all at once."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))

    def begin(self, size: int) -> None:
        """Begin a frame of a size."""
        with contextlib.suppress(OSError):
            self._socket.sendall(size.to_bytes(4, "big") + b"[")

    def flood(self, piece: bytes) -> int:
        """Send the same for as long as that goes; return how many bytes that were."""
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1 << 28:
                self._socket.sendall(piece)
                sent += len(piece)
        return sent

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next message of a kind; empty where the connection ends before."""
        while True:
            size = 4 + int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) >= max(5, size):
                name, fields = json.loads(self._buffer[4:size])
                self._buffer = self._buffer[size:]
                if name == kind:
                    return dict(fields)
                continue
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                if more := self._socket.recv(1 << 16):
                    self._buffer += more
                    continue
            return {}

    def close(self) -> None:
        """Leave."""
        self._socket.close()


@contextlib.contextmanager
def stranger(cluster: Spool, **task: Any) -> Iterator[tuple[Stranger, dict[str, Any]]]:
    """Give one that has a task, and what it was given."""
    made = Stranger(invited(cluster)).join().greet()
    try:
        drop(cluster, 1, **task)
        run = made.hear("Run")
        assert run
        yield made, run
    finally:
        made.close()
