"""The daemon's half of the control socket."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from batchd.control import coding
from batchd.control.answering import RequestHandlers, answered, line_of, peer, refused
from batchd.control.place import NAME, address

#: A request on one line is never longer.
_MAX_LINE = 1 << 20
#: Clients that may wait to be accepted.
_BACKLOG = 1024


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
        self._file = file_of(self._state)

    async def look(self) -> None:
        """Listen again where somebody has taken the socket's file away. Raises ``OSError``."""
        if self._server is not None and file_of(self._state) != self._file:
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
            if file_of(self._state) == self._file:
                _unlink(self._state)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client, line by line, until it goes."""
        by = peer(writer.get_extra_info("socket"))
        try:
            while (line := await line_of(reader)) is not None:
                if not line:
                    writer.write(refused(f"a request has at most {_MAX_LINE} bytes"))
                    break
                writer.write(await answered(line, by, self._commands, coding.REQUESTS))
                await writer.drain()
        except OSError:
            pass  # it is gone
        finally:
            writer.close()


def _bind(state: Path) -> socket.socket:
    _unlink(state)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # Before it is bound, so that no one else can ever connect.
    os.fchmod(listener.fileno(), 0o600)
    with address(state) as where:
        listener.bind(where)
    return listener


def file_of(folder: Path) -> tuple[int, int] | None:
    """Return which file the socket's name in a folder leads to; None where there is none."""
    try:
        found = os.lstat(f"{folder}/{NAME}")  # a Path would double what a look costs
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _unlink(state: Path) -> None:
    (state / NAME).unlink(missing_ok=True)
