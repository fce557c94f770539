"""Bytes between two sockets: read up to a mark, carried to an end,
in chunks or for as long as both will.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

from batchd.sandbox.network.http_heads import HeadError

_READ = 1 << 16
#: A connection on which nothing moves, either way, is closed after so long (seconds).
IDLE_S = 300.0
_MOST_CHUNK_LINE = 256
_MOST_TRAILERS = 1 << 13
#: Not read by h11, which does not say how long a chunk is,
#: takes 20 digits, and goes back and forth over long lines.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\x20-\x7e\t]*)?\r\n")


class RelayedStream:
    """One end of a connection, and what was read from it too early."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    async def until(self, mark: bytes, most: int) -> bytes:
        """Return what comes up to ``mark``, with it.

        Raises ``HeadError`` where it is too long, ``EOFError``.
        """
        start = 0
        while (found := self._buffer.find(mark, start)) < 0:
            if len(self._buffer) > most:
                raise HeadError("the head is too long", 431)
            start = max(0, len(self._buffer) - len(mark))
            await self._more()
        end = found + len(mark)
        if end > most:
            raise HeadError("the head is too long", 431)
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        return data

    async def _more(self) -> None:
        data = await self._loop.sock_recv(self._sock, _READ)
        if not data:
            raise EOFError
        self._buffer += data

    async def some(self, most: int = _READ) -> bytes:
        """Return what is there, at most ``most`` bytes; nothing at the end."""
        # A socket that always has something would never let another one have a turn.
        await asyncio.sleep(0)
        if self._buffer:
            data = bytes(self._buffer[:most])
            del self._buffer[:most]
            return data
        return await self._loop.sock_recv(self._sock, min(most, _READ))

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._sock, data)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)


class IdleLimit:
    """A time limit that starts again with every byte."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit

    def moved(self) -> None:
        """Something moved."""
        self._limit.reschedule(asyncio.get_running_loop().time() + IDLE_S)


async def carry(
    source: RelayedStream, sink: RelayedStream, length: int | None, patience: IdleLimit
) -> None:
    """Carry so many bytes, or all that come.

    Raises ``EOFError`` where there are fewer, ``OSError``.
    """
    while length != 0:
        data = await source.some(_READ if length is None else min(length, _READ))
        if not data:
            if length is not None:
                raise EOFError
            return
        await sink.send(data)
        patience.moved()
        length = None if length is None else length - len(data)


async def carry_chunks(source: RelayedStream, sink: RelayedStream, patience: IdleLimit) -> None:
    """Carry a body in chunks, each rewritten; what stands behind the last one is left out.

    Raises ``HeadError``, ``EOFError``, ``OSError``.
    """
    while True:
        match = _CHUNK.fullmatch(await source.until(b"\r\n", _MOST_CHUNK_LINE))
        if match is None:
            raise HeadError("a chunk is malformed")
        size = int(match[1], 16)
        if not size:
            break
        await sink.send(b"%x\r\n" % size)
        await carry(source, sink, size, patience)
        if await source.until(b"\r\n", 2) != b"\r\n":
            raise HeadError("a chunk is malformed")
        await sink.send(b"\r\n")
    left = _MOST_TRAILERS
    while (line := await source.until(b"\r\n", left)) != b"\r\n":
        left -= len(line)
    await sink.send(b"0\r\n\r\n")


async def join(one: RelayedStream, other: RelayedStream, patience: IdleLimit) -> None:
    """Carry both ways until both have ended; one that ends first may still listen.

    Raises ``OSError``.
    """

    async def half(source: RelayedStream, sink: RelayedStream) -> None:
        await carry(source, sink, None, patience)
        sink.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(half(one, other))
        group.create_task(half(other, one))
