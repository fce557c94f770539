"""What the daemon and its launcher say to each other: a line of JSON each, ``["KIND", {fields}]``.

The launcher knows of Ray, and nothing else; the daemon of tasks, and not of Ray.
A badge is the number of one worker.
"""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct

from batchd import decoders
from batchd.records import Has, Needs
from batchd.records.tasks import NOTHING


class FindRoom(Struct, frozen=True, kw_only=True):
    """To the launcher: find room for a worker.

    Answered by ``RoomFound``, whenever there is some, or ``WorkerStopped``.
    """

    badge: int
    #: Where it will dial the daemon: host and port.
    daemon: tuple[str, int]
    cpus: float
    memory_bytes: int
    #: What its tasks need of the node:
    #: so many GPUs, which it takes, and a custom resource of this name.
    needs: Needs = NOTHING
    #: The nodes, by their ids, on which no task can run.
    avoid: tuple[str, ...] = ()


class StartWorker(Struct, frozen=True):
    """To the launcher: start a worker where there is room for it."""

    badge: int
    #: A ticket, good on that node alone.
    ticket: str
    #: What its node is called.
    node: str
    #: What of the node is for its tasks.
    has: Has


class StopWorker(Struct, frozen=True):
    """To the launcher: end a worker, or stop looking for room. Answered by ``WorkerStopped``."""

    badge: int


class Connected(Struct, frozen=True):
    """From the launcher: the cluster takes orders."""


class NotConnected(Struct, frozen=True):
    """From the launcher, its last word: there is no cluster that it may use, and what helps."""

    message: str
    fix: str


class RoomFound(Struct, frozen=True, kw_only=True):
    """From the launcher: there is room for a worker on this node."""

    badge: int
    node_id: str
    #: What it is called: its host name, and what distinguishes it from others of that name.
    node: str
    #: The IP addresses from which it may reach the daemon.
    addresses: tuple[str, ...]


class WorkerStopped(Struct, frozen=True):
    """From the launcher: a worker, or the search for room for it, has ended."""

    badge: int
    cause: str


class NodeSize(Struct, frozen=True):
    """How much one node has in all, in use or not."""

    cpus: float
    memory_bytes: int
    #: Its GPUs, and the names of its custom resources.
    has: Has


class ClusterSize(Struct, frozen=True, kw_only=True):
    """From the launcher, every few seconds: the cluster answers;
    how much each of its nodes has in all.
    """

    nodes: tuple[NodeSize, ...]
    #: The ids of those that Ray drains:
    #: they are not among the others, for nothing more is placed there.
    draining: tuple[str, ...] = ()


Order: TypeAlias = FindRoom | StartWorker | StopWorker
News: TypeAlias = Connected | NotConnected | RoomFound | WorkerStopped | ClusterSize

_KINDS: dict[str, type[Struct]] = {
    kind.__name__: kind for kind in (*get_args(Order), *get_args(News))
}
_LINE: msgspec.json.Decoder[tuple[str, msgspec.Raw]] = decoders.decoder(tuple[str, msgspec.Raw])


def line(message: Order | News) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode((type(message).__name__, message)) + b"\n"


def message(read: bytes) -> Any:
    """Return the message on a line. Raises ``msgspec.MsgspecError`` or ``KeyError``."""
    kind, fields = _LINE.decode(read)
    return decoders.decode(fields, _KINDS[kind])
