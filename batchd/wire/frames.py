"""Frames: messages as bytes, four of length (big endian), then ``["KIND", {fields}]`` in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec.structs import replace

from batchd import decoders
from batchd.events import Event
from batchd.events import decode as decode_event
from batchd.events import encode as encode_event
from batchd.wire.elsewhere import (
    Join,
    Keys,
    LeaseRenewed,
    Leaving,
    NotAdmitted,
    PackPart,
    PackSent,
    PackTaken,
    PackWanted,
    PatchKept,
    PatchMade,
    WorkerEnded,
)
from batchd.wire.vocabulary import (
    Ack,
    Ask,
    CancelTask,
    Denied,
    Done,
    Drain,
    Failed,
    Granted,
    Heartbeat,
    Hello,
    History,
    Nack,
    Park,
    Progress,
    Record,
    Retune,
    Run,
)

#: A frame longer than this is a bug or an attack:
#: the largest legitimate one is an event of some megabytes.
MAX_FRAME = 1 << 28
#: And one from another machine, patches apart: any event of ours is smaller.
MAX_ELSEWHERE = 1 << 25
#: And of the history that one message takes along: a task's journal may be larger than a frame.
MAX_HISTORY = 1 << 24
#: To another machine: that it goes on reading shows at each.
MAX_HISTORY_ELSEWHERE = 1 << 20

Down: TypeAlias = (
    Hello
    | NotAdmitted
    | Keys
    | LeaseRenewed
    | History
    | Run
    | CancelTask
    | Park
    | Drain
    | Retune
    | Granted
    | Denied
    | Ack
    | Nack
    | PatchKept
    | PackPart
    | PackTaken
)
Up: TypeAlias = (
    Join
    | WorkerEnded
    | Hello
    | Ask
    | Failed
    | Record
    | PatchMade
    | PackWanted
    | PackSent
    | Progress
    | Done
    | Heartbeat
    | Leaving
)


@cache
def _decoders() -> dict[str, msgspec.json.Decoder[Any]]:
    return {cls.__name__: decoders.decoder(cls) for cls in {*get_args(Down), *get_args(Up)}}


_FRAME: msgspec.json.Decoder[tuple[str, msgspec.Raw]] = decoders.decoder(tuple[str, msgspec.Raw])


def handed(run: Run, most: int = MAX_HISTORY) -> Iterator[History | Run]:
    """Yield the messages that hand a task over:
    of a long history so many bytes each at ``most``, or a single event.
    """
    part: list[msgspec.Raw] = []
    size = 0
    for event in run.history:
        if part and size + len(bytes(event)) > most:
            yield History(ref=run.ref, attempt=run.attempt, events=tuple(part))
            part, size = [], 0
        part.append(event)
        size += len(bytes(event))
    yield replace(run, history=tuple(part))


def pack(message: Down | Up) -> bytes:
    """Return a message as one frame, its length in front."""
    body = msgspec.json.encode((type(message).__name__, message))
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> Any:
    """Return the message in a frame's body. Raises ``msgspec.MsgspecError`` or ``KeyError``."""
    kind, fields = _FRAME.decode(body)
    return _decoders()[kind].decode(fields)


def raw(events: list[Event]) -> tuple[msgspec.Raw, ...]:
    """Return events as messages carry them: encoded once, where they were made."""
    return tuple(msgspec.Raw(encode_event(e)) for e in events)


def unraw(bodies: tuple[msgspec.Raw, ...]) -> list[Event]:
    """Return the events that ``raw`` wrapped."""
    return [decode_event(bytes(b)) for b in bodies]
