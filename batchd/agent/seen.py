"""The files that an agent has seen: which a command has changed,
and which it knows before it edits them.
"""

from __future__ import annotations

import asyncio
import fnmatch
import posixpath
import re
import time
from collections.abc import Iterable, Mapping

from batchd.agent import prompts
from batchd.records import FileChanges, FileStamp, ToolCall
from batchd.sandbox import Workplace
from batchd.taskstate import FinishedCommand

#: A tree with more files, or one that takes longer to look through (seconds),
#: is not looked at for each command.
_MAX_FILES_EACH_TIME, _QUICK_S = 250, 0.001
#: A look that takes longer is one of a file system that may not answer.
_SLOW_LOOK_S = 0.01
#: Of what a command changed, so many files are named.
_NAMED = 10
_TASK = "/task"
#: What stands between the words of a command.
_WORDS = re.compile(r"[\s;|&<>()'\"=]+")
#: Of the files that a task changed, a judge is shown so many that hold at most so much (bytes).
_SHOWN, _MAX_SHOWN_BYTES = 8, 4096
#: Links, and what is no text, are left out.
_SHOW = """for file; do
    [ -f "$file" ] && [ ! -L "$file" ] && grep -Iq "" -- "$file" && iconv -f utf-8 -t utf-8 -- "$file" > /dev/null 2>&1 || continue
    printf '%s\\0' "$file" && head -c 4096 -- "$file" && printf '\\0'
done"""


class FileObserver:
    """The observer of a task's files around each of its commands."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._last: Mapping[str, FileStamp] | None = None
        #: Whether the last look took long; before the first one that is not known.
        self._slow = True

    async def before(self) -> None:
        """Look before a command, where it is not known what was there."""
        if self._last is None:
            self._last = await self._listed()

    async def after(self) -> str | None:
        """Return what changed since ``before``, in words, empty:
        nothing; None: there is too much to look at.
        """
        before, self._last = self._last, await self._listed()
        if before is None or self._last is None:
            return None
        return _changed(before, self._last)

    def forget(self) -> None:
        """Take what is known for outdated."""
        self._last = None

    async def _listed(self) -> Mapping[str, FileStamp] | None:
        # There are file systems that do not answer; a thread costs more than a quick look.
        return await asyncio.to_thread(self._look) if self._slow else self._look()

    def _look(self) -> Mapping[str, FileStamp] | None:
        began = time.monotonic()
        found = self._place.files(_MAX_FILES_EACH_TIME, _QUICK_S)
        self._slow = time.monotonic() - began > _SLOW_LOOK_S
        return found


def _changed(before: Mapping[str, FileStamp], after: Mapping[str, FileStamp]) -> str:
    """Return what became of files, in words: "a.py 812 → 840 bytes, b.py new, 12 bytes"."""
    changes = FileChanges.between(before, after)
    words = [_modified(path, before[path][0], after[path][0]) for path in changes.modified]
    words += [f"{prompts.plain(path)} new, {after[path][0]:,} bytes" for path in changes.created]
    words += [f"{prompts.plain(path)} deleted" for path in changes.deleted]
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f", {more} more" if more > 0 else "")


def _modified(path: str, before: int, after: int) -> str:
    # A ``sed -i`` that matches nothing writes the file all the same.
    if before == after:
        return f"{prompts.plain(path)} rewritten, {after:,} bytes as before"
    return f"{prompts.plain(path)} {before:,} → {after:,} bytes"


async def contents(place: Workplace, files: Iterable[tuple[str, int]], timeout_s: float) -> str:
    """Return what stands in the small ones of these files,
    which are texts, each under its name; empty: in none.

    Read by a command in the sandbox. Raises ``SandboxError``.
    """
    small = [path for path, size in files if 0 < size <= _MAX_SHOWN_BYTES][:_SHOWN]
    if not small:
        return ""
    ran = await place.run(
        ["sh", "-c", _SHOW, "sh", *small],
        timeout_s=timeout_s,
        max_output_bytes=2 * _MAX_SHOWN_BYTES * _SHOWN,
    )
    parts = ran.output.split("\0")  # which no text has
    return "\n".join(map(_indented, parts[::2], parts[1::2]))


def _indented(path: str, text: str) -> str:
    """Return a text under its name, further in: no line of its own looks like a name."""
    lines = (f"    {line}".rstrip() for line in text.splitlines())
    return "\n".join((f"==> {prompts.plain(path)} <==", *lines))


def knows(commands: Iterable[FinishedCommand], path: str) -> bool:
    """Return whether an agent that has made these calls knows a file:
    it has read or written it, or a command of its names it.
    """
    wanted = _normal(path)
    return any(_meets(command.call, wanted) for command in commands)


def _meets(call: ToolCall, wanted: str) -> bool:
    try:
        given = call.given()
    except (ValueError, RecursionError):
        return False
    if not isinstance(given, dict):
        return False
    command, path = given.get("command"), given.get("path")
    if isinstance(command, str):
        name = posixpath.basename(wanted)
        words = map(posixpath.basename, _WORDS.split(command))
        return any(word == name or fnmatch.fnmatchcase(name, word) for word in words if word)
    return isinstance(path, str) and _normal(path) == wanted


def _normal(path: str) -> str:
    """Return the one path that stands for all that name the same file."""
    return posixpath.normpath(posixpath.join(_TASK, path))
