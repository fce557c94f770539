"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …arguments}``, its answer ``{"ok": true, …}`` or
``{"ok": false, "error": "…", "exit_code": 2}``; both tell the daemon's version as ``batchd``. The client half is synchronous, and light to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from batchd import __version__
from batchd.errors import (
    BatchdError,
    NoAnswerError,
    NoDaemonError,
    NotPossibleError,
    UsageError,
    WithdrawnError,
)
from batchd.log import Action, get_logger

if TYPE_CHECKING:
    import asyncio

#: The socket's file in the state directory.
_NAME = "control.sock"
#: A request on one line is never longer.
_MAX_LINE = 1 << 20
#: Clients that may wait to be accepted.
_BACKLOG = 1024
#: What a socket's address holds, with the zero at its end.
_ADDRESS_BYTES = 108
_TIMEOUT_S = 30.0
_AGAIN_S = 0.02
#: When somebody who waits for an answer wants to know what for.
_WONDER_S = 2.0

#: What answers a verb: gets the arguments, returns the answer's fields. Raises ``BatchdError``.
#: ``by`` among the arguments is the ``Giver``.
Handler: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Giver:
    """Who asks, and whether somebody still waits for the answer."""

    uid: int
    pid: int
    #: The connection; None where the order is carried out in the giver's own process.
    connection: socket.socket | None = None

    def insist(self) -> None:
        """Return if the giver is still there; for any thread. Raises ``WithdrawnError``.

        To be asked last of all before something becomes durable: so an order never outlives its giver. Who has only
        sent all that it has to say still reads.
        """
        if self.connection is None:
            return
        descriptor = self.connection.fileno()
        poll = select.poll()
        if descriptor >= 0:
            poll.register(descriptor, 0)  # a hang-up is reported unasked
        if descriptor < 0 or poll.poll(0):
            raise WithdrawnError


def giver(arguments: Mapping[str, Any]) -> Giver:
    """Return who gave an order: without a connection it was this process."""
    by = arguments.get("by")
    return by if isinstance(by, Giver) else Giver(os.getuid(), os.getpid())


class Server:
    """The daemon's half."""

    def __init__(self, state: Path, handlers: Mapping[str, Handler]) -> None:
        self._state = state
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        #: The socket's file, as the kernel knows it.
        self._file: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Whoever calls this holds the spool's lock, so an old socket is nobody's."""
        import asyncio  # noqa: PLC0415 (commands, which only ask, start faster without it)

        listener = _bind(self._state)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=_MAX_LINE, backlog=_BACKLOG
        )
        self._file = _file(self._state)

    async def look(self) -> None:
        """Listen anew where somebody has taken the socket's file away. Raises ``OSError``."""
        if self._server is not None and _file(self._state) != self._file:
            former = self._server
            await self.start()
            former.close()  # who is connected to it still gets answers

    async def stop(self) -> None:
        """Close the socket and take it away; who still waits for an answer gets none."""
        import asyncio  # noqa: PLC0415 (as above)

        if self._server is not None:
            self._server.close()
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            if _file(self._state) == self._file:
                _unlink(self._state)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import asyncio  # noqa: PLC0415 (as above)

        client = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client, line by line, until it goes."""
        by = _peer(writer.get_extra_info("socket"))
        try:
            while (line := await _line(reader)) is not None:
                # After an upgrade, who asks may be of another version.
                answer = {**await self._answer(line, by), "batchd": __version__}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
                if not line:
                    break
        except OSError:
            pass  # it is gone
        finally:
            writer.close()

    async def _answer(self, line: bytes, by: Giver) -> Mapping[str, Any]:
        if not line:
            return _refusal(f"a request has at most {_MAX_LINE} bytes")
        try:
            request = json.loads(line)
            handler = self._handlers[request.pop("verb")]
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            known = ", ".join(sorted(self._handlers))
            return _refusal(f"not a request; the verbs are {known}")
        try:
            return {"ok": True, **await handler({**request, "by": by})}
        except BatchdError as error:
            return _refusal(str(error), error.exit_code)
        except Exception:  # noqa: BLE001 (a bug in a verb must not hang who asks, nor end the daemon)
            get_logger().exception(Action.COMMAND_REFUSED)
            return _refusal("an error inside batchd; the daemon's log has the details", 1)


def _refusal(error: str, exit_code: int = UsageError.exit_code) -> dict[str, Any]:
    return {"ok": False, "error": error, "exit_code": exit_code}


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """Return the next whole line; None at the end, empty where it is too long."""
    try:
        line = await reader.readline()
    except ValueError:
        return b""
    # What was cut off in the middle was not meant.
    return line if line.endswith(b"\n") else None


def _peer(sock: socket.socket) -> Giver:
    """Return who is at the other end."""
    form = struct.Struct("3i")
    pid, uid, _ = form.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
    return Giver(uid, pid, sock)


def request(
    state: Path,
    verb: str,
    *,
    timeout_s: float = _TIMEOUT_S,
    heed: Callable[[str], None] | None = None,
    waiting: Callable[[], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Ask the daemon of a state directory; return its answer's fields.

    ``heed`` is told which version answered, a refusal too; empty: one that does not tell yet. ``waiting`` is called
    once, where the answer is not there within a few seconds.

    Raises ``NoDaemonError`` where none runs, ``NoAnswerError`` where one does and says nothing for
    ``timeout_s``; where it refuses, ``UsageError``, or ``NotPossibleError``, or ``BatchdError``.
    """
    line = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
    try:
        answer = _exchange(state, line, timeout_s, waiting)
    except (FileNotFoundError, ConnectionError):
        raise NoDaemonError(f"no daemon runs on {state}") from None
    except TimeoutError:
        raise NoAnswerError(f"the daemon on {state} does not answer") from None
    version = answer.pop("batchd", "")
    if heed:
        heed(version)
    if not answer.pop("ok", False):
        kind = _REFUSALS.get(answer.get("exit_code", 2), BatchdError)
        raise kind(answer.get("error", "the daemon refused"))
    return answer


_REFUSALS: Mapping[int, type[BatchdError]] = {2: UsageError, 3: NotPossibleError}


def _exchange(
    state: Path, line: bytes, timeout_s: float, waiting: Callable[[], None] | None
) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _address(state) as address:
        sock.settimeout(timeout_s)
        _connect(sock, address, timeout_s)
        sock.sendall(line)
        if waiting and not _readable(sock):
            waiting()
        with sock.makefile("rb") as stream:
            answer = stream.readline()
    if not answer.endswith(b"\n"):
        raise ConnectionResetError
    value: dict[str, Any] = json.loads(answer)
    return value


def _readable(sock: socket.socket) -> bool:
    """Return whether an answer, or the end, comes within the time after which people wonder."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_WONDER_S * 1000))


def _connect(sock: socket.socket, address: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            sock.connect(address)
        except BlockingIOError:  # so many wait that not even the queue has room
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(_AGAIN_S)
        else:
            return


def _bind(state: Path) -> socket.socket:
    _unlink(state)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Before it is bound, so that nobody else can ever connect.
    os.fchmod(listener.fileno(), 0o600)
    with _address(state) as address:
        listener.bind(address)
    return listener


def _file(state: Path) -> tuple[int, int] | None:
    """Return which file the socket's name leads to; None where there is none."""
    try:
        found = os.lstat(state / _NAME)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unlink(state: Path) -> None:
    (state / _NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def _address(state: Path) -> Iterator[str]:
    """Give a path to the socket, its own if that is short: 108 bytes are all that a socket's address holds.

    By its own path whoever looks for sockets below some folder sees at once that it lies elsewhere.
    """
    plain = str(state / _NAME)
    if state.is_absolute() and len(os.fsencode(plain)) < _ADDRESS_BYTES:
        yield plain
        return
    directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{_NAME}"
    finally:
        os.close(directory)
