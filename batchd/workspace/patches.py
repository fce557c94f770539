"""The patch of a task: what it has changed in its clone or copy.

Git is asked in a repository of ours that begins at the mirror's commit and looks at the task's
files, with an empty HOME and /tmp: the task's own ``.git`` has no say in it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from batchd import free_room
from batchd.errors import SandboxError
from batchd.records import Base, Change, Patch
from batchd.sandbox import Workplace
from batchd.sandbox.directory import shown
from batchd.workspace import git

_CHANGED = git.text("changed")
#: How the changes of each file begin; no line within them does.
_HEAD = b"diff --git "
_HEADS = re.compile(rb"^diff --git .*$", re.MULTILINE)
_SIGN = re.compile(rb"^[ +-]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Read:
    """What git has printed."""

    #: What it leaves out, in words; empty: nothing.
    lacks: str
    changes: tuple[Change, ...]
    data: bytes
    #: What is no text in it, as it is.
    rest: bytes


async def changed(
    place: Workplace, base: Base, most: int, timeout_s: float = 120.0, *, secret: bool = True
) -> Patch:
    """Return what a task has changed; ``most``: the size of the patch, in bytes.

    Raises ``SandboxError``, ``FolderError``.

    No process of the task's may run any more.
    ``secret``: whether it has secrets that the patch may hold.
    """
    later = base.mirror if base.origin.kind == "clone" else ""
    words = (place.base, base.commit, str(most + 1), later, git.ATTRIBUTES, free_room.WORDS)
    argv = git.script(_CHANGED, *words)
    async with place.apart() as apart:
        ran = await apart.run(
            argv,
            timeout_s=timeout_s,
            max_output_bytes=((most + 1) * 8 // 3 + (4 << 20)),
            masked=False,
        )
    if ran.exit_code or ran.timed_out or ran.excess or ran.cut:
        why = ran.excess or ("it takes too long" if ran.timed_out else "")
        why = why or ("there are too many changes" if ran.cut else "")
        if not why and free_room.refused(ran.output):
            raise git.failure("its patch cannot be made", ran.output, ran.exit_code)
        return Patch(problem=why or place.masker.text(git.said(ran.output, ran.exit_code)))
    try:
        read = _read(ran.output)
    except (ValueError, binascii.Error) as error:
        raise SandboxError(f"git has printed no patch: {error}") from error
    data, left_out = _whole(read, most)
    # What is no text and cannot be looked through to its end may hold one.
    withheld = secret and (
        len(read.rest) > most or any(_holds_secret(place, each) for each in (data, read.rest))
    )
    mask = place.masker.text
    changes = tuple(
        Change(path=mask(c.path), added=c.added, removed=c.removed) for c in read.changes
    )
    return Patch(
        changes=changes,
        data=data,
        left_out=tuple(map(mask, left_out)),
        withheld=withheld,
        lacks=mask(read.lacks),
    )


def _read(output: str) -> _Read:
    lacks, numbers, patch, rest = output.split("\n")[:4]
    fields = base64.b64decode(numbers, validate=True).split(b"\0")
    return _Read(
        lacks=lacks.strip(),
        changes=tuple(_change(field) for field in fields if field),
        data=base64.b64decode(patch, validate=True),
        rest=base64.b64decode(rest, validate=True),
    )


def _change(field: bytes) -> Change:
    added, removed, path = field.split(b"\t", 2)
    return Change(
        path=shown(path.decode("utf-8", "surrogateescape")),
        added=None if added == b"-" else int(added),
        removed=None if removed == b"-" else int(removed),
    )


def _whole(read: _Read, most: int) -> tuple[bytes, tuple[str, ...]]:
    """Return as much of a patch as is whole, and the files whose changes are left out.

    Git prints files in the order in which it counts their lines.
    """
    data = read.data
    if len(data) <= most:
        return data, ()
    # A file that became a link, or the reverse, has two heads, one behind the other.
    starts, before = [], b""
    for head in _HEADS.finditer(data):
        if head[0] != before:
            starts.append(head.start())
        before = head[0]
    # The last one may be cut.
    whole = max((n for n, start in enumerate(starts) if start <= most), default=0)
    return data[: starts[whole]] if starts else b"", tuple(c.path for c in read.changes[whole:])


def _holds_secret(place: Workplace, data: bytes) -> bool:
    # A sign stands before each line, and would be a part of what is in base64 in lines.
    texts = (each.decode("utf-8", "replace") for each in (data, _SIGN.sub(b"", data)))
    return any(place.masker.text(text) != text for text in texts)
