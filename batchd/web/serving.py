"""The process: its socket, its server, what it says at its start, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from batchd.config import Config
from batchd.config.sections import loopback
from batchd.errors import NotPossibleError, UsageError
from batchd.web import shield
from batchd.web.application import application
from batchd.web.page_updates import EventStreams
from batchd.web.shield import TokenCheck

#: Connections at once, those of listeners included.
_CONNECTIONS = 256
_BACKLOG = 128
#: Who takes nothing of what is sent to him for so long has gone (milliseconds).
_DEAD_MS = 30_000
#: How long somebody may take to ask (seconds).
_ASKING_S = 10.0
#: What answers under way get to be finished when the process ends (seconds).
_GRACE_S = 2


def serve(config: Config, host: str, port: int, say: Callable[[str], None]) -> None:
    """Show the page until a signal says to end; ``say`` prints where.

    Raises ``UsageError``, ``NotPossibleError``.
    """
    web, state = config.web, Path(config.paths.state)
    secret = web.token(config.environ)
    near = loopback(host)
    if not near and not secret:
        raise UsageError(
            f"{host} may be reached by other machines: name a token_file or a token_env in [web] first, "
            "and put a server before it that speaks TLS, for a token in the clear can be read on the way"
        )
    made = not secret and not web.open
    gate = TokenCheck(shield.kept(state) if made else secret)
    streams = EventStreams()
    with _listener(host, port) as sock:
        app = application(config, gate, streams)
        for line in _announcement(sock, gate, state if made else None):
            say(line)
        asyncio.run(
            _run(
                uvicorn.Config(
                    app,
                    http=_Connection,
                    ws="none",
                    lifespan="on",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    limit_concurrency=_CONNECTIONS,
                    timeout_graceful_shutdown=_GRACE_S,
                ),
                sock,
                streams,
            )
        )


class _Connection(H11Protocol):
    """A connection that is let go where nothing is asked:
    uvicorn itself waits for ever for a first request, or a whole one.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        """Begin to wait for the next one."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        if self._due:
            self._due.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._due:
            self._due.cancel()
        self._due = self.loop.call_later(_ASKING_S, self._let_go)

    def _let_go(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``_run``: uvicorn would raise them again at the end."""
        yield


async def _run(config: uvicorn.Config, sock: socket.socket, streams: EventStreams) -> None:
    server = _Server(config)

    def end() -> None:
        server.should_exit = True
        streams.close()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    await server.serve([sock])


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """Listen. Raises ``NotPossibleError``: the port is taken, or the address not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotPossibleError(f"{host} is not an address of this machine: {error}") from None
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Taken over by every connection: the kernel hangs up on who reads no more.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_MS)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            raise NotPossibleError(
                f"cannot listen at {host}:{port}: {error.strerror}; "
                "choose another with --listen, or [web] listen"
            ) from None
        sock.setblocking(False)
        yield sock


def _announcement(sock: socket.socket, gate: TokenCheck, made_in: Path | None) -> Iterator[str]:
    """Yield where it is to be seen.

    The code is for who sits at a terminal: it lets one browser in, once.
    """
    host, port = sock.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if gate.open:
        yield f"{address} shows this spool to every user of this machine: prompts, answers, commands."
    elif sys.stdout.isatty():
        yield f"{address}#{gate.code()}"
        yield "This address lets one browser in, within ten minutes. Ctrl-C ends."
    else:
        yield f"{address} shows this spool to all who know the token."
    if made_in is not None:
        yield f"The token lies in {made_in / shield.NAME}."
