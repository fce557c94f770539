"""The endpoint of Prometheus: a small HTTP server in threads of its own."""

from __future__ import annotations

import contextlib
import errno
import http.server
import socket
import socketserver
import threading
import time
from collections.abc import Collection, Iterable
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

from batchd.errors import NotPossibleError
from batchd.records import hosts
from batchd.telemetry.loop_link import LoopLink

#: The time between two tries to get the port.
_AGAIN_S = 5.0
#: Who asks, or reads, more slowly is dropped (seconds); and who comes while so many are served.
_PATIENCE_S = 5.0
_GUESTS = 8
_END_S = 0.5
#: After a guest who could not be taken in.
_REST_S = 0.1


class _Handler(MetricsHandler):
    """Answers one request."""

    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        """Show the figures, but not to a page of another site in somebody's browser."""
        assert isinstance(self.server, _Server)
        named = self.headers.get_all("host", [])
        if len(named) == 1 and hosts.means(named[0], self.server.names):
            super().do_GET()
        else:
            why = "this name is not known here: use an address or localhost, or name it in [metrics] hosts"
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, why)


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves a few at a time."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], names: Collection[str], registry: CollectorRegistry
    ) -> None:
        #: What it may be called, beside its addresses.
        self.names = names
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._guests = threading.BoundedSemaphore(_GUESTS)
        super().__init__(address, _Handler.factory(registry))

    def server_bind(self) -> None:
        """Bind, without asking DNS for our own name, as ``HTTPServer`` does: that may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def get_request(self) -> tuple[Any, Any]:
        """Take in a guest.

        Raises ``OSError``, after a moment: he waits at the door still, and is seen at once again.
        """
        try:
            return super().get_request()
        except OSError:  # no descriptor is to be had
            time.sleep(_REST_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a guest in a thread, or turn it away."""
        if not self._guests.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had
            self._guests.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a guest, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._guests.release()

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
        self._registry = registry
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
                self._server = _Server(self._address, self._names, self._registry)
            except OSError as error:
                self._line.failed(self._explained(error))
                self._closing.wait(_AGAIN_S)
                continue
            self._line.worked()
            with self._server as server:
                while not self._closing.is_set():
                    server.handle_request()

    def _explained(self, error: OSError) -> NotPossibleError:
        why = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        host, port = self._address
        fix = "end that, or set another [metrics] listen"
        return NotPossibleError(f"metrics cannot be served at {host}:{port}, {why}: {fix}")
