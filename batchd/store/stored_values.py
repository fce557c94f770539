"""Large values as they are stored: JSON, deflated where that is worth its time;
and the labels that a task keeps beyond its text."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from batchd import decoders
from batchd.records import (
    Task,
)

#: Below this, deflating saves less than a row costs anyway.
_DEFLATE_FROM_BYTES = 512
#: How a zlib stream begins. JSON never does.
_ZLIB = b"x"
#: The header of a stream whose window is at most 32 KB (RFC 1950).
_HEADER = b"x\x01"
#: Up to this size a small window is enough, and a fifth of the time: to clear the large one takes
#: longer than to deflate so little (700 bytes: 14 µs, where it was 75; 4 KB: 31, where it was 90).
_SMALL_WINDOW_UP_TO_BYTES = 4096
_WINDOW_BITS, _MEMORY_LEVEL = 13, 6

_TASK: msgspec.json.Decoder[Task] = decoders.decoder(Task)
_VALUES: msgspec.json.Decoder[dict[str, str]] = decoders.decoder(dict[str, str])


def pack(body: bytes) -> bytes:
    """Return JSON text as it is stored.

    Level 1: a fifth of the time of the default, and nearly its size.
    """
    if len(body) <= _DEFLATE_FROM_BYTES:
        return body
    deflated = _small(body) if len(body) <= _SMALL_WINDOW_UP_TO_BYTES else zlib.compress(body, 1)
    return deflated if len(deflated) < len(body) else body


def _small(body: bytes) -> bytes:
    """Return a few bytes deflated, with the header by which every version knows a stream."""
    deflating = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
    deflated = deflating.compress(body) + deflating.flush()
    return _HEADER + deflated[len(_HEADER) :]


def unpack(stored: bytes) -> bytes:
    """Return the JSON text that ``pack`` stored."""
    return zlib.decompress(stored) if stored.startswith(_ZLIB) else stored


def pack_task(task: Task) -> bytes:
    """Return a task as it is stored: without the values of its secrets."""
    if task.secrets:
        names = {name: replace(secret, value="") for name, secret in task.secrets.items()}
        task = replace(task, secrets=names)
    return pack(msgspec.json.encode(task))


def pack_secrets(task: Task) -> bytes:
    """Return the values of a task's secrets as they are stored,
    as long as it has not ended; empty: it has none.
    """
    values = {name: secret.value for name, secret in task.secrets.items() if secret.value}
    return msgspec.json.encode(values) if values else b""


def unpack_task(stored: bytes, secrets: bytes | None = None) -> Task:
    """Return the task that ``pack_task`` stored, and ``pack_secrets``, if they are still there."""
    task = _TASK.decode(unpack(stored))
    if not secrets:
        return task
    known = dict(task.secrets)
    for name, value in _VALUES.decode(secrets).items():
        known[name] = replace(known[name], value=value)
    return replace(task, secrets=known)


def error_message(result: str) -> str:
    """Return the ``error.message`` of a result's text; empty where it has none."""
    try:
        error: Any = decoders.decode(result, _Peek).error
    except msgspec.MsgspecError:
        return ""
    return error.message if error else ""


class _Error(msgspec.Struct):
    message: str = ""


class _Peek(msgspec.Struct):
    error: _Error | None = None


class TaskLabels(NamedTuple):
    """Three columns of a task's row."""

    #: Its tags as JSON, sorted and each once; empty: it has none. Equal sets are equal texts.
    tags: str
    #: Who evaluates its rounds, in order: words of ``check``,
    #: ``output_schema`` and ``judge``, or ``none``.
    evaluation: str
    #: How long the user's own prompts are, in characters.
    prompt_chars: int


def labels_of(task: Task) -> TaskLabels:
    """Return the labels of a task."""
    asked = {
        "check": task.check,
        "output_schema": task.output_schema is not None,
        "judge": task.evaluator == "judge",
    }
    return TaskLabels(
        tags=msgspec.json.encode(sorted(set(task.tags))).decode() if task.tags else "",
        evaluation=" ".join(by for by, wanted in asked.items() if wanted) or "none",
        prompt_chars=len(task.first_prompt) + len(task.system_prompt),
    )
