"""The daemon's half of the control socket."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from batchd.control import requests
from batchd.control.client import NAME, address
from batchd.control.orders import ORDERS
from batchd.control.requests import A, Check, ControlRequest, Detach, Submit
from batchd.control.status import AskStatus
from batchd.errors import BatchdError, UsageError, WithdrawnError
from batchd.gone import GONE_COMMANDS
from batchd.log import Action, get_logger
from batchd.version import __version__

#: By its verb, what can be asked.
REQUESTS: Mapping[str, type[ControlRequest[Any]]] = {
    **ORDERS,
    **{kind.verb(): kind for kind in (AskStatus, Submit, Detach, Check)},
}
#: A request on one line is never longer.
_MAX_LINE = 1 << 20
#: Clients that may wait to be accepted.
_BACKLOG = 1024
#: Characters of what a giver says of whom it asks for.
_VIA = 200


@dataclass(frozen=True, slots=True)
class Requester:
    """The sender of a request, and whether somebody still waits for the answer."""

    uid: int
    pid: int
    #: The connection; None where the order is carried out in the giver's own process.
    connection: socket.socket | None = None
    #: For whom they ask, in their own words, as the web page does for browsers;
    #: empty: for themselves.
    via: str = ""

    def insist(self) -> None:
        """Return if the giver is still there; for any thread. Raises ``WithdrawnError``.

        To be asked last of all before something becomes durable: so an order never outlives its
        giver. Who has only sent all that it has to say still reads.
        """
        if self.connection is None:
            return
        descriptor = self.connection.fileno()
        poll = select.poll()
        if descriptor >= 0:
            poll.register(descriptor, 0)  # a hang-up is reported unasked
        if descriptor < 0 or poll.poll(0):
            raise WithdrawnError


class RequestHandlers(Protocol):
    """What carries requests out: one handler for each kind."""

    async def carry_out(self, request: ControlRequest[A], by: Requester, /) -> A:
        """Do what is asked, and return the answer. Raises ``BatchdError``."""

    def refused(
        self,
        kind: type[ControlRequest[Any]],
        given: Mapping[str, Any],
        by: Requester,
        error: BatchdError,
        /,
    ) -> None:
        """Take note of a request of a kind that is refused for its fields."""


class Server:
    """A server on the control socket, for as long as the daemon runs."""

    def __init__(self, state: Path, commands: RequestHandlers) -> None:
        self._state = state
        self._commands = commands
        self._server: asyncio.Server | None = None
        #: The socket's file, as the kernel knows it.
        self._file: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. The caller holds the spool's lock, so an old socket has no daemon."""
        listener = _bind(self._state)
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=_MAX_LINE, backlog=_BACKLOG
        )
        self._file = _file_of(self._state)

    async def look(self) -> None:
        """Listen again where somebody has taken the socket's file away. Raises ``OSError``."""
        if self._server is not None and _file_of(self._state) != self._file:
            former = self._server
            await self.start()
            former.close()  # who is connected to it still gets answers

    async def stop(self) -> None:
        """Close the socket and take it away; who still waits for an answer gets none."""
        if self._server is not None:
            self._server.close()
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
            if _file_of(self._state) == self._file:
                _unlink(self._state)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client, line by line, until it goes."""
        sock = writer.get_extra_info("socket")
        form = struct.Struct("3i")
        pid, uid, _ = form.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
        by = Requester(uid, pid, sock)
        try:
            while (line := await _line(reader)) is not None:
                if not line:
                    writer.write(_said(_refusal(f"a request has at most {_MAX_LINE} bytes")))
                    break
                writer.write(_said(await _answer(line, by, self._commands)))
                await writer.drain()
        except OSError:
            pass  # it is gone
        finally:
            writer.close()


def _said(answer: Mapping[str, Any]) -> bytes:
    """Return an answer as a line; after an upgrade, who asks may be of another version."""
    return json.dumps({**answer, "batchd": __version__}).encode() + b"\n"


async def _answer(line: bytes, by: Requester, commands: RequestHandlers) -> Mapping[str, Any]:
    try:
        given = json.loads(line)
        if instead := GONE_COMMANDS.get(str(given["verb"])):
            return _refusal(f"there is no {given['verb']} any more: {instead}")
        kind = REQUESTS[given["verb"]]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return _refusal(f"not a request; the verbs are {', '.join(sorted(REQUESTS))}")
    if isinstance(via := given.get("via"), str):
        by = replace(by, via=via[:_VIA])
    try:
        try:
            request = requests.request(kind, given)
        except UsageError as error:
            commands.refused(kind, requests.known(kind, given), by, error)
            raise
        return {"ok": True, **requests.fields(await commands.carry_out(request, by))}
    except BatchdError as error:
        return _refusal(str(error), error.exit_code)
    except Exception:  # noqa: BLE001 (a bug in a command must not hang who asks, nor end the daemon)
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


def _bind(state: Path) -> socket.socket:
    _unlink(state)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Before it is bound, so that no one else can ever connect.
    os.fchmod(listener.fileno(), 0o600)
    with address(state) as where:
        listener.bind(where)
    return listener


def _file_of(folder: Path) -> tuple[int, int] | None:
    """Return which file the socket's name in a folder leads to; None where there is none."""
    try:
        found = os.lstat(f"{folder}/{NAME}")  # a Path would double what a look costs
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unlink(state: Path) -> None:
    (state / NAME).unlink(missing_ok=True)
