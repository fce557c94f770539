"""The vetting of what a worker of another machine says:
a forged event must not cost more than its task.

Such a machine holds the task, and may lie about it.
It must not stop the daemon, nor leave what no later one can read.
"""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec

from batchd import decoders, wire
from batchd.events import Event, TaskFinished
from batchd.formats import ResultV1
from batchd.records import Ref, TaskStatus

_RESULT: msgspec.json.Decoder[ResultV1] = decoders.decoder(ResultV1)
_KINDS = (
    *(wire.Ask, wire.Failed, wire.Record, wire.PatchMade, wire.Progress, wire.Done),
    *(wire.PackWanted, wire.PackSent),
)
#: No count, size or duration of ours is larger, and SQLite takes it.
_MAX_NUMBER = 1 << 53
#: Where the stamps of files stand, and how large a number is in them.
_STAMPS, _MOST_STAMP = frozenset({"files", "triggers"}), (1 << 63) - 1
#: How far a clock may be ahead of ours, in seconds.
_AHEAD_S = 86_400.0


def problem(message: Any) -> str:
    """Return what in a message no worker of ours says; empty: all may be true."""
    if not isinstance(message, _KINDS):
        return f"it sent {type(message).__name__}"
    if isinstance(message, wire.PackSent):  # its numbers say what it has, and are held against that
        return ""
    ask = message.ask if isinstance(message, wire.Failed) else message
    bodies = ask.events if isinstance(ask, wire.Ask | wire.Record) else ()
    try:
        events = wire.unraw(bodies)
        sound = _numbers(msgspec.json.decode(msgspec.json.encode(message)))
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
        return f"it sent an invalid event: {str(error)[:200]}"
    if not sound:
        return "it sent an impossible number"
    if isinstance(ask, wire.Ask) and min(ask.input_tokens, ask.max_output_tokens) < 0:
        return "it asked for a call of fewer than 0 tokens"
    return next(filter(None, (_event_problem(ask.ref, each) for each in events)), "")


def _numbers(value: Any, most: int = _MAX_NUMBER) -> bool:
    """Whether all numbers in a JSON value are ones that can be stored."""
    if isinstance(value, dict):
        return all(_numbers(each, _most(key, most)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_numbers(each, most) for each in value)
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= most
    return not isinstance(value, int) or abs(value) <= most


def _most(key: str, most: int) -> int:
    """Return how large a number below a key may be: the times of files are nanoseconds."""
    return _MOST_STAMP if key in _STAMPS else most


def _event_problem(ref: Ref, event: Event) -> str:
    if not 0 <= event.at <= time.time() + _AHEAD_S:
        return f"it sent an event with a wrong time: {event.at:g}"
    if not isinstance(event, TaskFinished):
        return ""
    try:
        result = _RESULT.decode(event.result)
    except msgspec.MsgspecError as error:
        return f"it sent an invalid result: {str(error)[:200]}"
    if (result.batch, result.task) != (ref.batch, ref.task):
        return f"it sent a result of {result.batch}/{result.task}"
    known = {each.value for each in TaskStatus if each.final}
    if event.status not in known or (result.status, result.reason) != (event.status, event.reason):
        return (
            f"it sent a result that says {result.status}, for a task that ended as {event.status}"
        )
    return ""
