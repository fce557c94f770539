"""Frames of ``wire`` over a stream socket: the same class at both ends.

A ``Protocol`` rather than streams: a message costs one call, not a task that wakes up.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import accumulate, takewhile
from typing import Any, cast

import msgspec

from batchd import wire

_HEAD = 4
#: Bytes read at a time.
_READ = 1 << 16
#: What is written at a time to who may be slow, or hostile;
#: and what may wait to be read there, in bytes.
_PIECE = 1 << 20


class Channel(asyncio.BufferedProtocol):
    """One end of the connection between the daemon and a worker."""

    def __init__(
        self,
        on_message: Callable[[Any], None],
        on_lost: Callable[[str], None],
        *,
        most: int = wire.MAX_FRAME,
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        """``on_lost`` is called once, with the cause where the peer broke the protocol.

        ``most``: bytes of a frame that it may send.

        ``on_drained``: given where the peer may be anyone. Who does not read what it is sent is not
        read either, and gets a bounded piece at a time; it is called as that goes on.
        """
        self._on_message = on_message
        self._on_lost = on_lost
        self._most = most
        self._on_drained = on_drained
        #: Whether what was sent is not read.
        self.clogged = False
        self._transport: asyncio.Transport | None = None
        #: Where the kernel puts what arrives:
        #: a fresh piece of memory a read costs more than the read.
        self._space = memoryview(bytearray(_READ))
        #: The beginning of a frame whose rest has not arrived.
        self._buffer = bytearray()
        self._cause = ""
        #: What was sent since the loop's last turn, or before there was a transport.
        self._frames: list[bytes] = []

    async def attach(self, sock: socket.socket) -> None:
        """Take over ``sock``; messages begin to arrive."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    def send(self, message: wire.Down | wire.Up) -> None:
        """Write a message with all others of the loop's turn;
        one to a peer that is gone is dropped.

        Each write wakes the peer, which costs both more than the message.
        """
        if not self._frames and self._transport is not None:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames.append(wire.pack(message))

    def _flush(self) -> None:
        assert self._transport is not None
        frames = self._frames
        if self._on_drained is not None:
            while frames and not self._transport.is_closing():
                if self.clogged:
                    return
                sizes = accumulate(map(len, frames))
                count = 1 + sum(1 for _ in takewhile(_PIECE.__ge__, sizes))
                self._transport.write(b"".join(frames[:count]))
                del frames[:count]
        elif frames and not self._transport.is_closing():
            self._transport.write(b"".join(frames))
        frames.clear()

    def pause_writing(self) -> None:
        """Asyncio calls this: the peer is behind with reading."""
        if self._on_drained is not None:
            assert self._transport is not None
            self.clogged = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Asyncio calls this: it has caught up."""
        if self._on_drained is not None:
            assert self._transport is not None
            self.clogged = False
            self._transport.resume_reading()
            self._on_drained()
            self._flush()

    def close(self) -> None:
        """Close once everything is written; ``on_lost`` follows."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close at once, and read no more; ``on_lost`` follows."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)
        if self._on_drained is not None:
            self._transport.set_write_buffer_limits(high=_PIECE)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio calls this."""
        self._on_lost(self._cause)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Asyncio calls this."""
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        """Asyncio calls this: hand on every whole frame."""
        buffer, start = self._buffer, 0
        buffer += self._space[:nbytes]
        while len(buffer) - start >= _HEAD and not self._cause:
            end = start + _HEAD + int.from_bytes(buffer[start : start + _HEAD], "big")
            if end - start > self._most:
                self._abort(f"a frame of {end - start} bytes")
            elif end > len(buffer):
                break
            else:
                self._deliver(bytes(buffer[start + _HEAD : end]))
                start = end
        del buffer[:start]

    def _deliver(self, body: bytes) -> None:
        try:
            message = wire.unpack(body)
        except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
            self._abort(f"an unreadable frame: {error}")
        else:
            self._on_message(message)

    def _abort(self, cause: str) -> None:
        self._cause = cause
        assert self._transport is not None
        self._transport.abort()
