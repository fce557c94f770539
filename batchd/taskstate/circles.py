"""Circles: what shows that a task does not move,
as calls that come again with the same outputs, and such as do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from batchd.events import ToolRan
from batchd.records import ToolCall

#: A call with its output, as one number, and whether it may have changed a file.
Step: TypeAlias = tuple[int, bool]
#: A circle has at most so many calls, and is one when it has come so often (the design's number).
_MAX_CIRCLE_CALLS, _TIMES = 4, 3
#: So many steps are looked back on.
LOOKED_BACK = _MAX_CIRCLE_CALLS * _TIMES
#: Commands that do nothing, by which models that have only commands say that they are done.
_NOTHING = re.compile(
    r"""(?i)(exit(\s+0)?|true|:|done[.!]?|echo\s+(["']?)(?:(all|the|my|this)\s+)?(?:(task|work|job|everything)\s+)?"""
    r"""(?:(is|has\s+been)\s+)?(?:now\s+)?(?:successfully\s+)?(done|completed?|finished|(任务)?(已)?完成)"""
    r"""(?:\s+successfully)?[.!。]?\3)?"""
)
#: What batchd says of files, with what has changed in them: it is not the command's own output.
_ADDED = re.compile(r"\n?\[changed: [^\n]*\](?:\n[-+ @][^\n]*)*")
_BETWEEN = re.compile(r"[\n;]|&&")


def circling(steps: Sequence[Step], longest: int = _MAX_CIRCLE_CALLS) -> bool:
    """Return whether the last steps are the same few, three times;
    of several none may have changed a file.
    """
    return any(_circle(steps, length) for length in range(1, longest + 1))


def _circle(steps: Sequence[Step], length: int) -> bool:
    last = steps[-length * _TIMES :]
    if len(last) < length * _TIMES or (length > 1 and any(moved for _, moved in last)):
        return False
    return all(step[0] == last[i % length][0] for i, step in enumerate(last))


def step(event: ToolRan) -> Step:
    """Return a call with its output as a step.

    What runs in the background, and what was not looked at, may have moved.
    """
    output = _ADDED.sub("", event.output)
    moved = event.changed is not False or bool(event.left)
    return hash((event.call.name, event.call.arguments, output)), moved


def idle(call: ToolCall) -> bool:
    """Return whether a call does nothing: it is how a model stops that knows no other way."""
    try:
        given = call.given()
    except (ValueError, RecursionError):
        return False
    command = given.get("command") if isinstance(given, dict) else None
    if not isinstance(command, str):
        return False
    return all(_NOTHING.fullmatch(part.strip()) for part in _BETWEEN.split(command))
