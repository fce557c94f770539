"""The proxy of one sandbox: what connects to it is read, held to the task's list, and carried on.

A connection carries one request, or one tunnel. So nothing that follows a request, whatever its
sender and the server take it for, reaches the server. What a server answers goes back as it comes,
until one of the two closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Iterable

from batchd.records.policy import Address
from batchd.sandbox.network import destinations, http_heads
from batchd.sandbox.network.destinations import AllowedHosts, RefusedError, UnreachableError
from batchd.sandbox.network.door import RefusedHosts
from batchd.sandbox.network.http_heads import HeadError, RequestHead

#: Connections of one sandbox at a time; more of them wait in the kernel's queue.
MOST_CONNECTIONS = 64
#: Lookups of one sandbox at a time: each has a thread, which cannot be stopped.
_LOOKUPS = 8
#: For the head of a request, and for the way to a server (seconds).
_HEAD_S = 30.0
_CONNECT_S = 10.0
#: A connection on which nothing moves, either way, is closed after so long (seconds).
_IDLE_S = 300.0
#: After a refusal the client may still be sending: so long it is heard, else it would not hear
#: the answer.
_LINGER_S = 1.0
_PAUSE_S = 0.1
_FORBIDDEN, _NO_GATEWAY, _LATE = 403, 502, 408
_READ = 1 << 16
_MOST_CHUNK_LINE = 256
#: Not read by h11, which does not say how long a chunk is,
#: takes 20 digits, and goes back and forth over long lines.
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\x20-\x7e\t]*)?\r\n")


class Proxy:
    """The proxy behind a listening socket, which it closes in the end."""

    def __init__(
        self, listener: socket.socket, allowed: AllowedHosts, refusals: RefusedHosts
    ) -> None:
        self._listener = listener
        self._allowed = allowed
        self._refusals = refusals
        self._lookups = asyncio.Semaphore(_LOOKUPS)
        self._connections: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def serve(self) -> None:
        """Serve until cancelled; then everything is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._free.acquire()
                # asyncio's own accept loses a connection that comes as it is cancelled.
                knocked = asyncio.Event()
                loop.add_reader(self._listener, knocked.set)
                try:
                    await knocked.wait()
                finally:
                    loop.remove_reader(self._listener)
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    # No descriptor left, or a client that went away: neither ends the proxy.
                    self._free.release()
                    await asyncio.sleep(_PAUSE_S)
                    continue
                task = loop.create_task(self._connection(client))
                self._connections.add(task)
                task.add_done_callback(self._gone)
        finally:
            self._listener.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._free.release()

    async def _connection(self, sock: socket.socket) -> None:
        """Serve one connection to its end."""
        with contextlib.closing(_Stream(sock)) as client:
            # One of the two may be gone, silent, or talk nonsense: closing shows the other.
            try:
                target = "an invalid request"
                try:
                    async with asyncio.timeout(_HEAD_S):
                        raw = await client.until(b"\r\n\r\n", http_heads.MOST_BYTES)
                    request = http_heads.request(raw)
                    target = request.target
                    server = await self._connected(request)
                except TimeoutError:
                    await _refuse(client, _LATE, "the request did not come in time")
                except HeadError as error:
                    self._refusals.add(f"{target}: {error}")
                    await _refuse(client, error.status, str(error))
                except RefusedError as error:
                    self._refusals.add(f"{target}: {str(error).partition(',')[0]}")
                    await _refuse(client, _FORBIDDEN, f"{target} is refused: {error}")
                except UnreachableError as error:
                    await _refuse(client, _NO_GATEWAY, f"{target} cannot be reached: {error}")
                else:
                    with contextlib.closing(server):
                        await _carry(request, client, server)
            except* (OSError, EOFError, HeadError):
                pass

    async def _connected(self, request: RequestHead) -> _Stream:
        """Return a connection to where the request wants to go: its host is looked up once, and
        an address that was looked at is dialled.

        Raises ``RefusedError``, ``UnreachableError``.
        """
        private = self._allowed.check(request.host, request.port)
        async with self._lookups:
            found = await destinations.looked_up(request.host, request.port)
        good = destinations.permitted(found, request.port, private=private)
        return await _first(good, request.port)


async def _refuse(client: _Stream, status: int, why: str) -> None:
    await client.send(http_heads.refusal(status, why))
    client.end()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while await client.some():
                pass


async def _first(addresses: Iterable[Address], port: int) -> _Stream:
    """Return a connection to the first of these very addresses that takes it.

    Raises ``UnreachableError``.
    """
    why = ""
    for address in addresses:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # IPv4
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = _Stream(sock)
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            silent = isinstance(error, TimeoutError)
            why = "no answer in time" if silent else os.strerror(error.errno or 0)
        else:
            return server
    raise UnreachableError(why)


class _Stream:
    """One end of a connection, and what was read from it too early; closed with its block."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        self._sock.close()

    async def until(self, mark: bytes, most: int) -> bytes:
        """Return what comes up to ``mark``, with it.

        Raises ``HeadError`` where it is too long, ``EOFError``.
        """
        start = 0
        while (found := self._buffer.find(mark, start)) < 0 and len(self._buffer) <= most:
            start = max(0, len(self._buffer) - len(mark))
            data = await self._loop.sock_recv(self._sock, _READ)
            if not data:
                raise EOFError
            self._buffer += data
        if not 0 <= found <= most - len(mark):
            raise HeadError("the head is too long", http_heads.LONG_HEAD)
        return self._taken(found + len(mark))

    async def some(self, most: int = _READ) -> bytes:
        """Return what is there, at most ``most`` bytes; nothing at the end."""
        # A socket that always has something would never let another one have a turn.
        await asyncio.sleep(0)
        return self._taken(most) or await self._loop.sock_recv(self._sock, most)

    def _taken(self, most: int) -> bytes:
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._sock, data)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)


async def _carry(request: RequestHead, client: _Stream, server: _Stream) -> None:
    """Carry a request to its server and what comes back, until nothing moves any more.

    Raises ``HeadError``, ``EOFError``, ``OSError``.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_IDLE_S) as limit:

        async def carry(source: _Stream, sink: _Stream, length: int | None = None) -> None:
            """Carry so many bytes, or all that come."""
            while length != 0:
                data = await source.some(_READ if length is None else min(length, _READ))
                if not data:
                    if length is not None:
                        raise EOFError
                    sink.end()
                    return
                await sink.send(data)
                limit.reschedule(loop.time() + _IDLE_S)
                length = None if length is None else length - len(data)

        async def chunks() -> None:
            """Carry a body in chunks, each written anew; what stands behind the last one stays."""
            size = -1
            while size:
                line = _CHUNK.fullmatch(await client.until(b"\r\n", _MOST_CHUNK_LINE))
                if line is None:
                    raise HeadError("a chunk is malformed")
                size = int(line[1], 16)
                await server.send(b"%x\r\n" % size)
                await carry(client, server, size)
                if size:
                    await client.until(b"\r\n", 2)
                await server.send(b"\r\n")

        async def up() -> None:
            """Carry a request, and nothing behind it."""
            with contextlib.suppress(OSError):  # the server hears no more; it may have answered
                await server.send(request.head)
                if request.length is None:
                    await chunks()
                else:
                    await carry(client, server, request.length)
            # Unread, it would take the answer from the client as the connection closes.
            while await client.some():
                pass

        async with asyncio.TaskGroup() as group:
            if not request.head:
                await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                group.create_task(carry(client, server))
                await carry(server, client)
                return
            # Both at once: a server may answer before it has heard everything.
            rising = group.create_task(up())
            answer = b""
            with contextlib.suppress(OSError):
                answer = await server.some()
            silent = http_heads.refusal(_NO_GATEWAY, f"{request.target} gave no answer")
            await client.send(answer or silent)
            await carry(server, client)
            rising.cancel()
