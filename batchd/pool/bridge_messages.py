"""What the daemon and its bridge to Ray say to each other: frames of msgpack, length in front.

The bridge knows of Ray and of bytes; the daemon of workers and tasks, and not of Ray. A badge is
the number of one worker.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

#: Bytes that go to or from a worker at a time, and that may be under way each way.
MOST_DATA, WINDOW = 1 << 20, 16 << 20
#: After so many bytes that were read the other end learns of them.
NOTICE = WINDOW // 4
_MOST_FRAME = MOST_DATA + (64 << 10)
_HEAD = 4


class FindRoom(Struct, frozen=True, kw_only=True, tag=True):
    """To the bridge: find room for a worker.

    Answered by ``RoomFound``, whenever there is some, or ``WorkerStopped``.
    """

    badge: int
    cpus: float
    memory_bytes: int
    #: The nodes, by their ids, on which no task can run.
    avoid: tuple[str, ...] = ()


class StartWorker(Struct, frozen=True, tag=True):
    """To the bridge: start a worker where there is room for it."""

    badge: int
    #: The file on the shared disk that has the key of its stream.
    key_file: str


class StopWorker(Struct, frozen=True, tag=True):
    """To the bridge: end a worker, or stop looking for room. Answered by ``WorkerStopped``."""

    badge: int


class Down(Struct, frozen=True, tag=True):
    """To the bridge: bytes for a worker. ``Taken`` tells when many of them are read."""

    badge: int
    data: bytes


class Read(Struct, frozen=True, tag=True):
    """To the bridge: so many bytes of a worker's are read, and as many more may come."""

    badge: int
    size: int


class Connected(Struct, frozen=True, tag=True):
    """From the bridge: the cluster takes orders."""


class NotConnected(Struct, frozen=True, tag=True):
    """From the bridge, its last word: there is no cluster that it may use, and what helps."""

    message: str
    fix: str


class RoomFound(Struct, frozen=True, kw_only=True, tag=True):
    """From the bridge: there is room for a worker on this node."""

    badge: int
    node_id: str


class Up(Struct, frozen=True, tag=True):
    """From the bridge: bytes of a worker."""

    badge: int
    data: bytes


class Taken(Struct, frozen=True, tag=True):
    """From the bridge: a worker has read so many bytes."""

    badge: int
    size: int


class WorkerStopped(Struct, frozen=True, tag=True):
    """From the bridge: a worker, or the search for room for it, has ended."""

    badge: int
    cause: str


class ClusterAnswers(Struct, frozen=True, tag=True):
    """From the bridge, every few seconds: the cluster answers."""

    #: The ids of the nodes that Ray drains: nothing more is placed there.
    draining: tuple[str, ...]


Order: TypeAlias = FindRoom | StartWorker | StopWorker | Down | Read
News: TypeAlias = Connected | NotConnected | RoomFound | Up | Taken | WorkerStopped | ClusterAnswers


def frame(message: Order | News) -> bytes:
    """Return a message as one frame."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_HEAD, "big") + body


async def order(reader: asyncio.StreamReader) -> Order:
    """Return what the daemon says next. Raises ``EOFError`` where it has ended."""
    said: Order = msgspec.msgpack.decode(await _body(reader), type=Order)
    return said


async def news(reader: asyncio.StreamReader) -> News:
    """Return what the bridge says next.

    Raises ``EOFError`` where it has ended, ``ValueError`` for what it cannot have said.
    """
    said: News = msgspec.msgpack.decode(await _body(reader), type=News)
    return said


async def _body(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(_HEAD), "big")
    if size > _MOST_FRAME:
        raise ValueError(f"a frame of {size:,} bytes")
    return await reader.readexactly(size)
