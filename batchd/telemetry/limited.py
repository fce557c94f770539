"""A limit on the whole of a request, as ``requests`` has none:
its timeouts begin again with every byte that comes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class LimitedSession(HTTPAdapter):
    """A session with a limit: makes one request at a time,
    on connections that another thread can break off.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: A duplicate of the latest connection's socket:
        #: the original may be wrapped, or closed, by now.
        self._held: socket.socket | None = None
        #: Whether the latest request was broken off: what came of its answer may look whole.
        self.broken_off = False
        #: When the request under way is over, by the monotonic clock.
        self._ends: float | None = None
        self._pools = _pools(self._hold)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Requests calls this."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Requests calls this."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Break off what is done within when it takes longer."""
        self.broken_off = False
        self._set(time.monotonic() + seconds)
        try:
            yield
        finally:
            self._set(None)

    def watch(self) -> None:
        """Break off what takes too long, for ever: a daemon thread's work."""
        with self._changed:
            while True:
                left = None if self._ends is None else self._ends - time.monotonic()
                if left is not None and left <= 0:
                    self.broken_off = True
                    self._cut()
                    self._ends = left = None
                self._changed.wait(left)

    def close(self) -> None:
        """Break off the request under way, and close all connections."""
        with self._changed:
            self._cut()
        super().close()

    def _cut(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with held, contextlib.suppress(OSError):  # its peer has gone already
                held.shutdown(socket.SHUT_RDWR)

    def _set(self, ends: float | None) -> None:
        with self._changed:
            self._ends = ends
            self._changed.notify()

    def _hold(self, sock: socket.socket) -> None:
        with self._changed:
            former, self._held = self._held, sock.dup()
        if former is not None:
            former.close()


def _pools(hold: Any) -> dict[str, Any]:
    """Return pools by scheme whose connections are made known
    as soon as they stand, before any TLS.
    """

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            hold(sock)
            return sock

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            hold(sock)
            return sock

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
