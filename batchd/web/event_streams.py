"""Server-sent events: what is new, for as long as a browser listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

#: Who listens at once. A browser that may not is asked to come again.
MAX_LISTENERS = 64
_RETRY_MS = 2000
#: Something is sent that often, so that who is gone is noticed,
#: and no proxy on the way hangs up (seconds).
_HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event: ``data`` is JSON without a line break."""

    name: str
    data: bytes
    #: What the browser shows when it comes back; empty: nothing that it need know.
    id: str = ""

    def encoded(self) -> bytes:
        """Return it as it is sent."""
        head = f"id: {self.id}\n" if self.id else ""
        return f"{head}event: {self.name}\ndata: ".encode() + self.data + b"\n\n"


class EventStreams:
    """All who listen.

    Each gets the next event once it has taken the last one: who is slow misses some.
    """

    def __init__(self) -> None:
        self._open: set[asyncio.Future[None]] = set()

    def answer(self, events: AsyncIterator[ServerEvent]) -> EventStream | Response:
        """Return the answer to who wants to listen."""
        if len(self._open) >= MAX_LISTENERS:
            why = f"{MAX_LISTENERS} browsers listen already; close some"
            return JSONResponse({"error": why}, 503, {"Retry-After": "10"})
        return EventStream(events, self._open)

    def close(self) -> None:
        """Hang up."""
        for each in [*self._open]:
            each.cancel()


class EventStream:
    """The answer to one who listens: an ASGI application."""

    def __init__(
        self, events: AsyncIterator[ServerEvent], known: set[asyncio.Future[None]]
    ) -> None:
        self._events = events
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until one side has enough."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),  # for proxies that would collect it
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] != "HEAD":
            feeding = asyncio.ensure_future(self._feed(send))
            leaving = asyncio.ensure_future(_gone(receive))
            self._known.add(feeding)
            try:
                await asyncio.wait({feeding, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (feeding, leaving):
                    each.cancel()
                await asyncio.wait({feeding, leaving})
                self._known.discard(feeding)
            if not feeding.cancelled() and (error := feeding.exception()):
                raise error
        await send({"type": "http.response.body", "body": b""})

    async def _feed(self, send: Send) -> None:
        async def give(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await give(f"retry: {_RETRY_MS}\n\n".encode())
        coming: asyncio.Future[ServerEvent] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(self._events))
                done, _ = await asyncio.wait({coming}, timeout=_HEARTBEAT_S)
                if not done:
                    await give(b": still here\n\n")
                    continue
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                await give(event.encoded())
        finally:
            if coming is not None:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await coming


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
