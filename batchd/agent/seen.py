"""The files that an agent has seen: which a command has changed,
and which it knows before it edits them.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import fnmatch
import functools
import hashlib
import posixpath
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from batchd.agent import prompts
from batchd.records import FileChanges, FileStamp, ToolCall
from batchd.sandbox import Workplace, directory
from batchd.taskstate import FinishedCommand

#: A tree with more files, or one that takes longer to look through (seconds),
#: is not looked at for each command.
_MAX_FILES_EACH_TIME, _QUICK_S = 250, 0.001
#: A look that takes longer is one of a file system that may not answer.
_SLOW_LOOK_S = 0.01
#: Of what a command changed, so many files are named.
_NAMED = 10
_TASK = "/task"
#: Contents are compared of files of up to so much, of so much at a look; of short ones the text is
#: kept (bytes).
_MAX_FILE_BYTES, _MAX_READ_BYTES = 1 << 20, 4 << 20
_MAX_TEXT_BYTES, _MAX_HELD_BYTES = 16 << 10, 64 << 10
#: What is shown of a change, and the longest texts that are compared line by line.
_MAX_DIFF_LINES, _MAX_DIFF_CHARS, _MAX_COMPARED_LINES = 40, 2048, 1000
#: Commands that are meant to change the files that they name, and some that show or write them.
_IN_PLACE = re.compile(
    r"\b(?:sed\s(?:.*\s)?-\w*i|perl\s(?:.*\s)?-\w*i|awk\s.*inplace|patch|ed|ex)\b"
)
_SHOWS = re.compile(r"\b(?:cat|head|tail|nl|less|more|sed\s+-n|grep|awk|diff|tee)\b|(?<![\d&])>")
#: What a task's first message quotes of its directory (bytes, seconds to read it), and lists.
_MAX_QUOTED_BYTES, _PATIENCE_S, _MAX_LISTED = 8 << 10, 5.0, 30
#: What stands between the words of a command.
_WORDS = re.compile(r"[\s;|&<>()'\"=]+")
#: Of the files that a task changed, a judge is shown so many that hold at most so much (bytes).
_SHOWN, _MAX_SHOWN_BYTES = 8, 4096
#: Links, and what is no text, are left out.
_SHOW = """for file; do
    [ -f "$file" ] && [ ! -L "$file" ] && grep -Iq "" -- "$file" && iconv -f utf-8 -t utf-8 -- "$file" > /dev/null 2>&1 || continue
    printf '%s\\0' "$file" && head -c "$0" -- "$file" && printf '\\0'
done"""


class SeenFile(NamedTuple):
    """A file at the last look."""

    stamp: FileStamp
    #: Of its contents; empty: too large to be read each time, or not to be read.
    digest: bytes = b""
    #: What stands in it, without secrets, where that is a short text.
    text: str | None = None


class FileObserver:
    """The observer of a task's files around each of its commands."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._known: dict[str, SeenFile] = {}
        self._fresh = False
        #: Whether the last look took long; before the first one that is not known.
        self._slow = True
        #: Files that were quoted at the start, or whose first lines were.
        self.shown: set[str] = set()

    async def before(self) -> None:
        """Look before a command, where it is not known what was there."""
        if not self._fresh:
            await self._listed()

    async def after(
        self, command: str, commands: Sequence[FinishedCommand]
    ) -> tuple[bool | None, str]:
        """Return whether a file's contents have changed since ``before``, and what of it the model
        reads; None: there is too much to look at.

        ``commands``: those before it, which may have shown files.
        """
        before, looked = self._known, self._fresh
        await self._listed()
        if not (looked and self._fresh):
            return None, ""
        if words := _changed(before, self._known):
            return True, words
        if not (meant := _IN_PLACE.search(command)) and before == self._known:
            return False, ""
        unseen = (p for p in before if meant and p not in self.shown and _names(command, p))
        path = next((p for p in unseen if not _was_shown(commands, p)), "")
        return False, prompts.unchanged(path, self._first_lines(path))

    def _first_lines(self, path: str) -> str:
        """Return the beginning of a file that the model has not seen; empty: it has none."""
        self.shown.add(path)
        text = self._known[path].text if path in self._known else None
        return "".join((text or "").splitlines(keepends=True)[:_MAX_DIFF_LINES])[:_MAX_DIFF_CHARS]

    def forget(self) -> None:
        """Take what is known for outdated."""
        self._fresh = False

    async def _listed(self) -> None:
        # There are file systems that do not answer; a thread costs more than a quick look.
        if self._slow:
            await asyncio.to_thread(self._look)
        else:
            self._look()

    def _look(self) -> None:
        began = time.monotonic()
        found = self._place.files(_MAX_FILES_EACH_TIME, _QUICK_S)
        self._fresh = found is not None
        self._known = self._place.look(functools.partial(self._read, found or {}))
        self._slow = time.monotonic() - began > _SLOW_LOOK_S

    def _read(self, found: Mapping[str, FileStamp], top: int) -> dict[str, SeenFile]:
        """Return what stands in files; what has kept its stamp is not read again."""
        room, held = _MAX_READ_BYTES, _MAX_HELD_BYTES
        known: dict[str, SeenFile] = {}
        for path, stamp in found.items():
            file = self._known.get(path, SeenFile(()))
            if file.stamp != stamp:
                data = directory.contents(top, path, min(room, _MAX_FILE_BYTES))
                room -= len(data or b"")
                file = SeenFile(stamp) if data is None else self._of(stamp, data)
            held -= len(file.text or "")
            known[path] = file if held >= 0 else file._replace(text=None)
        return known

    def _of(self, stamp: FileStamp, data: bytes) -> SeenFile:
        text = None
        if len(data) <= _MAX_TEXT_BYTES and b"\0" not in data:
            with contextlib.suppress(UnicodeDecodeError):
                text = self._place.masker.text(data.decode())
        return SeenFile(stamp, hashlib.blake2b(data, digest_size=16).digest(), text)


def _changed(before: Mapping[str, SeenFile], after: Mapping[str, SeenFile]) -> str:
    """Return which files have other contents now, in words: "a.py 812 → 840 bytes,
    b.py new, 12 bytes", and what has changed in them, where that is short.
    """
    changes = FileChanges.between(
        *({p: f.stamp for p, f in now.items()} for now in (before, after))
    )
    modified = [
        path
        for path in changes.modified
        if not before[path].digest or before[path].digest != after[path].digest
    ]
    size = {path: f"{file.stamp[0]:,}" for path, file in after.items()}
    words = [f"{prompts.plain(p)} {before[p].stamp[0]:,} → {size[p]} bytes" for p in modified]
    words += [f"{prompts.plain(path)} new, {size[path]} bytes" for path in changes.created]
    words += [f"{prompts.plain(path)} deleted" for path in changes.deleted]
    more = len(words) - _NAMED
    if not words:
        return ""
    listed = ", ".join(words[:_NAMED]) + (f", {more} more" if more > 0 else "")
    return "\n".join((f"[changed: {listed}]", *_differences(modified, before, after)))


def _differences(
    paths: Iterable[str], before: Mapping[str, SeenFile], after: Mapping[str, SeenFile]
) -> list[str]:
    """Return what has changed in texts, as lines of a unified diff; nothing of what is longer."""
    shown: list[str] = []
    for path in paths:
        old, new = before[path].text, after[path].text
        if old is None or new is None:
            continue
        both = old.splitlines(), new.splitlines()
        if max(map(len, both)) > _MAX_COMPARED_LINES:
            continue
        name = prompts.plain(path)
        lines = list(difflib.unified_diff(*both, name, name, n=1, lineterm=""))[1:]
        both_lengths = len(shown) + len(lines), sum(map(len, (*shown, *lines)))
        if both_lengths[0] <= _MAX_DIFF_LINES and both_lengths[1] <= _MAX_DIFF_CHARS:
            shown += lines
    return shown


async def contents(place: Workplace, files: Iterable[tuple[str, int]], timeout_s: float) -> str:
    """Return what stands in the small ones of these files,
    which are texts, each under its name; empty: in none. Raises ``SandboxError``.
    """
    small = [path for path, size in files if 0 < size <= _MAX_SHOWN_BYTES][:_SHOWN]
    read = await _read(place, small, timeout_s, _MAX_SHOWN_BYTES)
    return "\n".join(map(_indented, read, read.values()))


async def opening(
    place: Workplace,
    files: Mapping[str, FileStamp] | None,
    prompt: str,
    most: int | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Return what a task's first message says of its directory, and which files that quotes.

    Those that the prompt names by their path, together up to ``most`` bytes where a small window
    has no room for more, and a list of all where these are few. Raises ``SandboxError``.
    """
    if not files:
        return "", ()
    room, wanted = min(most or _MAX_QUOTED_BYTES, _MAX_QUOTED_BYTES), list[str]()
    for path in named(prompt):
        if path in files and 0 < files[path][0] <= room:
            room -= files[path][0]
            wanted.append(path)
    read = await _read(place, wanted, _PATIENCE_S, _MAX_QUOTED_BYTES)
    # No file says what the task is.
    read = {path: text for path, text in read.items() if prompts.ASKED not in text}
    others = [(path, stamp[0]) for path, stamp in sorted(files.items()) if path not in read]
    unlisted = 0 if len(files) <= _MAX_LISTED else len(others)
    return prompts.opening(others[: len(others) - unlisted], read, unlisted), tuple(read)


async def _read(
    place: Workplace, paths: Sequence[str], timeout_s: float, most: int
) -> dict[str, str]:
    """Return what stands in those files that are texts, of each at most ``most`` bytes.

    Read by a command in the sandbox. Raises ``SandboxError``.
    """
    if not paths:
        return {}
    argv = ["sh", "-c", _SHOW, str(most), *paths]
    room = 2 * most * len(paths)
    ran = await place.run(argv, timeout_s=timeout_s, max_output_bytes=room, own=True)
    parts = ran.output.split("\0")  # which no text has
    return dict(zip(parts[::2], parts[1::2], strict=False))


def _indented(path: str, text: str) -> str:
    """Return a text under its name, further in: no line of its own looks like a name."""
    lines = (f"    {line}".rstrip() for line in text.splitlines())
    return "\n".join((f"==> {prompts.plain(path)} <==", *lines))


def named(prompt: str) -> tuple[str, ...]:
    """Return what a prompt may name of the directory, by paths below it."""
    words = (word.strip("`*,:!?。").rstrip(".") for word in _WORDS.split(prompt))
    return tuple(dict.fromkeys(posixpath.relpath(_normal(w), _TASK) for w in words if w))


def knows(commands: Iterable[FinishedCommand], path: str, quoted: Iterable[str] = ()) -> bool:
    """Return whether an agent that has made these calls knows a file: it has read or written it,
    a command of its names it, or it was ``quoted``.
    """
    wanted = _normal(path)
    met = any(_meets(command.call, wanted) for command in commands)
    return met or any(_normal(each) == wanted for each in quoted)


def _meets(call: ToolCall, wanted: str) -> bool:
    given = call.fields
    command, path = given.get("command"), given.get("path")
    if isinstance(command, str):
        return _names(command, wanted)
    return isinstance(path, str) and _normal(path) == wanted


def _names(command: str, path: str) -> bool:
    """Return whether a command names a file, by its name or by a pattern."""
    name = posixpath.basename(path)
    words = map(posixpath.basename, _WORDS.split(command))
    return any(word == name or fnmatch.fnmatchcase(name, word) for word in words if word)


def _was_shown(commands: Iterable[FinishedCommand], path: str) -> bool:
    """Return whether an agent has seen what stands in a file: has read it, or written it whole."""
    named = (c.call for c in commands if _meets(c.call, _normal(path)))
    return any(call.name != "shell" or _SHOWS.search(call.arguments) for call in named)


def _normal(path: str) -> str:
    """Return the one path that stands for all that name the same file."""
    return posixpath.normpath(posixpath.join(_TASK, path))
