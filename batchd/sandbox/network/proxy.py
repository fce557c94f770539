"""The proxy of one command: what connects to it is read, held to the task's list, and carried on.

A connection carries one request, or one tunnel. So nothing that follows a request, whatever its
sender and the server take it for, reaches the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable

from batchd.records.addresses import Address
from batchd.sandbox.network import http_heads, relay
from batchd.sandbox.network.destinations import (
    AllowedHosts,
    RefusedError,
    Resolver,
    UnreachableError,
)
from batchd.sandbox.network.http_heads import HeadError, RequestHead
from batchd.sandbox.network.refused_hosts import RefusedHosts
from batchd.sandbox.network.relay import IdleLimit, RelayedStream

#: Connections of one command at a time; more of them wait in the kernel's queue.
MOST_CONNECTIONS = 64
#: For the head of a request, and for the way to a server (seconds).
_HEAD_S = 30.0
_CONNECT_S = 10.0
#: After a refusal the client may still be sending: so long,
#: and so much, is heard, else it would not hear the answer.
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 18
_PAUSE_S = 0.1
_FORBIDDEN, _NO_GATEWAY, _LATE = 403, 502, 408


class Proxy:
    """The proxy behind a listening socket, which it closes in the end."""

    def __init__(
        self, listener: socket.socket, allowed: AllowedHosts, refusals: RefusedHosts
    ) -> None:
        self._listener = listener
        self._allowed = allowed
        self._refusals = refusals
        self._resolver = Resolver()
        self._connections: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def serve(self) -> None:
        """Serve until cancelled; then everything is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._free.acquire()
                await self._knocked()
                try:
                    client, _ = self._listener.accept()
                except BlockingIOError:
                    self._free.release()
                    continue
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

    async def _knocked(self) -> None:
        """Wait until somebody connects.
        asyncio's own accept loses a connection that comes as it is cancelled.
        """
        loop = asyncio.get_running_loop()
        knocked = asyncio.Event()
        loop.add_reader(self._listener, knocked.set)
        try:
            await knocked.wait()
        finally:
            loop.remove_reader(self._listener)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._free.release()

    async def _connection(self, client: socket.socket) -> None:
        with client:
            client.setblocking(False)
            # One of the two may be gone, or silent: closing shows the other.
            try:
                await self._answered(RelayedStream(client))
            except* (OSError, EOFError):
                pass

    async def _answered(self, client: RelayedStream) -> None:
        """Serve one connection to its end."""
        target = "an invalid request"
        try:
            async with asyncio.timeout(_HEAD_S):
                raw = await client.until(b"\r\n\r\n", http_heads.MOST_REQUEST)
            request = http_heads.request(raw)
            target = request.target
            server = await self._connected(request)
        except TimeoutError:
            await self._refuse(client, _LATE, "the request did not come in time")
        except HeadError as error:
            self._refusals.add(f"{target}: {error}")
            await self._refuse(client, error.status, str(error))
        except RefusedError as error:
            self._refusals.add(f"{target}: {str(error).partition(',')[0]}")
            await self._refuse(client, _FORBIDDEN, f"{target} is refused: {error}")
        except UnreachableError as error:
            await self._refuse(client, _NO_GATEWAY, f"{target} cannot be reached: {error}")
        else:
            with server:
                await _carry(request, client, RelayedStream(server))

    async def _refuse(self, client: RelayedStream, status: int, why: str) -> None:
        await client.send(http_heads.refusal(status, f"batchd: {why}", f"batchd: {why}"))
        client.end()
        heard = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while heard < _LINGER_BYTES and (data := await client.some()):
                    heard += len(data)

    async def _connected(self, request: RequestHead) -> socket.socket:
        """Return a connection to where the request wants to go.

        Raises ``RefusedError``, ``UnreachableError``.
        """
        private = self._allowed.check(request.host, request.port)
        found = await self._resolver.addresses(request.host, request.port, private=private)
        return await _first(found, request.port)


async def _first(addresses: Iterable[Address], port: int) -> socket.socket:
    """Return a connection to the first of these very addresses that takes it.

    Raises ``UnreachableError``.
    """
    why = ""
    for address in addresses:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # IPv4
        try:
            return await _to(family, str(address), port)
        except TimeoutError:
            why = "no answer in time"
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
    raise UnreachableError(why)


async def _to(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(_CONNECT_S):
            await asyncio.get_running_loop().sock_connect(server, (address, port))
    except BaseException:
        server.close()
        raise
    return server


async def _carry(request: RequestHead, client: RelayedStream, server: RelayedStream) -> None:
    """Carry a request to its server and what comes back."""
    async with asyncio.timeout(relay.IDLE_S) as limit:
        patience = IdleLimit(limit)
        if request.tunnel:
            await client.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await relay.join(client, server, patience)
            return
        with contextlib.suppress(OSError):  # what it may have answered already says more
            await server.send(request.head)
        if request.waits:
            await client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Both at once: a server may answer before it has heard everything.
        body = asyncio.ensure_future(_body(request, client, server, patience))
        try:
            await _answer(request, client, server, patience)
        finally:
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)


async def _body(
    request: RequestHead, client: RelayedStream, server: RelayedStream, patience: IdleLimit
) -> None:
    """Carry a request's body, and nothing behind it;
    one that is malformed leaves the server without its end.
    """
    try:
        if request.length is None:
            await relay.carry_chunks(client, server, patience)
        else:
            await relay.carry(client, server, request.length, patience)
    except (HeadError, EOFError):
        server.end()
    except OSError:
        return  # the server will hear no more; it may have answered


async def _answer(
    request: RequestHead, client: RelayedStream, server: RelayedStream, patience: IdleLimit
) -> None:
    """Carry the answer, and what a server says before it."""
    while True:
        try:
            raw = await server.until(b"\r\n\r\n", http_heads.MOST_ANSWER)
            answer = http_heads.answer(raw, bare=request.bare)
        except (HeadError, EOFError, OSError) as error:
            why = str(error) or "it said nothing"
            text = f"batchd: {request.target} gave no answer: {why}"
            await client.send(http_heads.refusal(_NO_GATEWAY, text, text))
            return
        await client.send(answer.head)
        patience.moved()
        if answer.status >= 200:  # not a word on the way
            await relay.carry(server, client, answer.length, patience)
            return
