"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …arguments}``, its answer ``{"ok": true, …}`` or
``{"ok": false, "error": "…"}``. The client half is synchronous, and light to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from batchd.errors import BatchdError, NoDaemonError, UsageError

if TYPE_CHECKING:
    import asyncio

#: A request on one line is never longer.
_MAX_LINE = 1 << 20
_TIMEOUT_S = 30.0

#: What answers a verb: gets the arguments, returns the answer's fields. Raises ``BatchdError``.
Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Server:
    """The daemon's half."""

    def __init__(self, state: Path, handlers: Mapping[str, Handler]) -> None:
        self._state = state
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Whoever calls this holds the spool's lock, so an old socket is nobody's."""
        import asyncio  # noqa: PLC0415 (commands, which only ask, start faster without it)

        listener = _bind(self._state)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MAX_LINE)

    async def stop(self) -> None:
        """Close the socket and take it away."""
        if self._server is not None:
            self._server.close()
            for client in self._clients:
                client.close()
            _unlink(self._state)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        with contextlib.suppress(OSError, ValueError):  # gone, or a line without end
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        self._clients.discard(writer)
        writer.close()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
            handler = self._handlers[request.pop("verb")]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"not a request; the verbs are {known}"}
        try:
            return {"ok": True, **await handler(request)}
        except BatchdError as error:
            return {"ok": False, "error": str(error)}


def request(state: Path, verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon of a state directory; return its answer's fields.

    Raises ``NoDaemonError`` where none runs, ``UsageError`` where it refuses.
    """
    try:
        answer = _exchange(state, json.dumps({"verb": verb, **arguments}).encode() + b"\n")
    except (FileNotFoundError, ConnectionError):
        raise NoDaemonError(f"no daemon runs on {state}") from None
    except TimeoutError:
        raise NoDaemonError(f"the daemon on {state} does not answer") from None
    if not answer.pop("ok", False):
        raise UsageError(answer.get("error", "the daemon refused"))
    return answer


def _exchange(state: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _address(state) as address:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(address)
        sock.sendall(line)
        with sock.makefile("rb") as stream:
            answer = stream.readline()
    if not answer.endswith(b"\n"):
        raise ConnectionResetError
    value: dict[str, Any] = json.loads(answer)
    return value


def _bind(state: Path) -> socket.socket:
    _unlink(state)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Before it is bound, so that nobody else can ever connect.
    os.fchmod(listener.fileno(), 0o600)
    with _address(state) as address:
        listener.bind(address)
    return listener


def _unlink(state: Path) -> None:
    (state / "control.sock").unlink(missing_ok=True)


@contextlib.contextmanager
def _address(state: Path) -> Iterator[str]:
    """Give a short path to the socket: 108 bytes are all that a socket's address holds."""
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/control.sock"
    finally:
        os.close(directory)
