"""The server of the metrics: one that a slow or a strange guest does not hold up."""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import socketserver
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from batchd.daemon.listeners import LoopLink
from batchd.errors import NotPossibleError
from batchd.records import policy

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: The time between two tries to get the port.
_AGAIN_S = 5.0
#: Who asks, or reads, more slowly is dropped (seconds); and who comes while so many are served.
_PATIENCE_S = 5.0
_GUESTS = 8
_END_S = 0.5
#: After a guest who could not be taken in.
_REST_S = 0.1


class _Handler(WSGIRequestHandler):
    """Reads one request, and writes its answer."""

    timeout = _PATIENCE_S

    def get_stderr(self) -> io.StringIO:
        """Take what would be logged of a reader who stands still: that is not a trouble."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Serves a few at a time."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._guests: set[object] = set()
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        """Take in a guest.

        Raises ``OSError``, after a moment: he waits at the door still, and is seen at once again.
        """
        try:
            return super().get_request()
        except OSError:  # no descriptor is to be had
            time.sleep(_REST_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether there is room for one more."""
        if len(self._guests) >= _GUESTS:
            return False
        self._guests.add(request)
        return True

    def shutdown_request(self, request: Any) -> None:
        """See a guest out."""
        self._guests.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client that leaves in the middle of its answer is not a trouble."""


class MetricsServer:
    """The server, from the moment that the port is to be had to its ``close``."""

    def __init__(
        self,
        address: tuple[str, int],
        names: Iterable[str],
        registry: CollectorRegistry,
        line: LoopLink,
    ) -> None:
        """``names``: what it may be called, beside its addresses,
        localhost and this machine's name.
        """
        self._address = address
        own = ("localhost", socket.gethostname(), *names)
        self._names = {name.lower().rstrip(".") for name in own}
        self._figures: WSGIApplication = make_wsgi_app(registry)
        self._line = line
        self._server: _Server | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of the port."""
        self._closing.set()
        if server := self._server:
            # Wakes who waits for a guest.
            with contextlib.suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                self._server = _Server(self._address)
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                why = "another process listens there" if taken else error.strerror
                host, port = self._address
                trouble = f"metrics cannot be served at {host}:{port}, {why}"
                fix = "end that, or set another [metrics] listen"
                self._line.failed(NotPossibleError(f"{trouble}: {fix}"))
                self._closing.wait(_AGAIN_S)
                continue
            self._line.worked()
            with self._server as server:
                server.set_app(self._answer)
                while not self._closing.is_set():
                    server.handle_request()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Show the figures, but not to a page of another site in somebody's browser."""
        if policy.means(environ.get("HTTP_HOST", ""), self._names):
            return self._figures(environ, start)
        start("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [
            b"this name is not known here: use an address or localhost, or name it in [metrics] hosts\n"
        ]
