"""What shows that a task does not move: calls that come again with the same outputs, and such as do nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from batchd.records import ToolCall

#: A call with its output, as one number, and whether it changed a file.
Step: TypeAlias = tuple[int, bool]
#: A circle has at most so many calls, and is one when it has come so often (the design's number).
_LONGEST, _TIMES = 4, 3
#: So many steps are looked back on.
LOOKED_BACK = _LONGEST * _TIMES
#: Commands that do nothing, by which models that have only commands say that they are done; what is echoed is neither
#: expanded nor written anywhere.
_NOTHING = re.compile(
    r"""(?i)(exit(\s+0)?|true|:|done[.!]?|echo(\s+("[^"$`\\]*"|'[^']*'|[^"'$`\\|&<>()*?~#]*))?)?"""
)
#: What a closing sentence has in it.
_CLOSING = re.compile(
    r"(?i)\b(done|completed?|finished|success(ful(ly)?)?|works?|ready)\b|完成|成功"
)
_BETWEEN = re.compile(r"[\n;]|&&")


def circling(steps: Sequence[Step]) -> bool:
    """Return whether the last steps are the same few, three times; of several none may have changed a file."""
    return any(_circle(steps, length) for length in range(1, _LONGEST + 1))


def _circle(steps: Sequence[Step], length: int) -> bool:
    last = steps[-length * _TIMES :]
    if len(last) < length * _TIMES or (length > 1 and any(moved for _, moved in last)):
        return False
    return all(step[0] == last[i % length][0] for i, step in enumerate(last))


def idle(call: ToolCall) -> bool:
    """Return whether a call does nothing: it is how a model stops that knows no other way."""
    try:
        given = call.given()
    except (ValueError, RecursionError):
        return False
    command = given.get("command") if isinstance(given, dict) else None
    if not isinstance(command, str):
        return False
    parts = [part.strip() for part in _BETWEEN.split(command)]
    return all(map(_does_nothing, parts))


def _does_nothing(part: str) -> bool:
    found = _NOTHING.fullmatch(part)
    if found is None:
        return False
    return not part.lower().startswith("echo") or bool(_CLOSING.search(part))
