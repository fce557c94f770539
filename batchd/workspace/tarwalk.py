"""Looks through the heads of a tar that somebody else has written,
before it is believed to be one of ours.

It is unpacked in the sandbox alone, whatever is in it:
this finds early what no worker of batchd writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from batchd.errors import TarError

_BLOCK = 512
#: Files, hard and symbolic links, folders, and what says more of the next one.
_KINDS = frozenset(b"0125x\0")
_FILE, _MORE = ord("0"), ord("x")
#: Names of two thousand characters, and times.
_MOST_MORE = 1 << 16
#: Of each head: where the fields lie.
_NAME, _SIZE, _SUM, _KIND, _PREFIX = (
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    156,
    slice(345, 500),
)


@dataclass(frozen=True, slots=True)
class TarEntry:
    """What a tar says of one entry."""

    #: As tar writes it, one letter: ``0``, ``1`` (a hard link),
    #: ``2`` (a symbolic link), ``5`` (a folder).
    kind: str
    #: Below the directory, without a slash at its end.
    path: bytes


def entries(parts: Iterator[bytes], most: int) -> Iterator[TarEntry]:
    """Yield what a tar has, to its end.

    Raises ``TarError`` for what is no tar of ours, or has more than ``most`` heads.
    """
    stream, count, more = _Stream(parts), 0, dict[bytes, bytes]()
    while (head := stream.take(_BLOCK)) and any(head):
        count += 1
        size = _checked(head)
        if count > most:
            raise TarError(f"it has more than {most:,} entries")
        if head[_KIND] == _MORE:
            if size > _MOST_MORE:
                raise TarError("an entry has too large a header")
            more = _records(stream.take(_padded(size))[:size])
            continue
        name = more.get(b"path") or b"/".join(
            filter(None, map(_text, (head[_PREFIX], head[_NAME])))
        )
        if not name.startswith(b"./") or b".." in name.split(b"/"):
            raise TarError(f"it has an entry called {name[:200]!r}")
        yield TarEntry(chr(head[_KIND] or _FILE), name[2:].rstrip(b"/"))
        stream.skip(_padded(_number(more[b"size"], 10) if b"size" in more else size))
        more = {}
    stream.end()


def check(parts: Iterator[bytes], most: int) -> None:
    """Raise ``WorkspaceError`` for what is not a tar of batchd, or has more than ``most`` heads."""
    for _ in entries(parts, most):
        pass


def check_names(names: Iterable[bytes], most: int) -> None:
    """Raise ``WorkspaceError`` for paths that lead out of a directory, or more than ``most``.

    None of them is kept.
    """
    for number, name in enumerate(names, 1):
        if number > most:
            raise TarError(f"it names more than {most:,} paths")
        if b".." in name.split(b"/"):
            raise TarError(f"it names {os.fsdecode(name[:200])!r}")


def _checked(head: bytes) -> int:
    """Return the size in a head that can be one. Raises ``TarError``."""
    blank = b" " * 8
    if len(head) < _BLOCK or sum(head[:148] + blank + head[156:]) != _number(_text(head[_SUM]), 8):
        raise TarError("it is not a tar")
    if head[_KIND] not in _KINDS:
        raise TarError(f"it has an entry of kind {chr(head[_KIND])!r}")
    return _number(_text(head[_SIZE]), 8)


def _number(text: bytes, base: int) -> int:
    digits = text.strip(b" \0")
    if not digits.isdigit():
        raise TarError("it has an invalid number")
    try:
        return int(digits, base)
    except ValueError:
        raise TarError("it has an invalid number") from None


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _records(body: bytes) -> dict[bytes, bytes]:
    """Return what is said of the next entry: lines that begin with their own length."""
    found = {}
    while body:
        length = _number(body.partition(b" ")[0], 10)
        line, body = body[:length], body[length:]
        key, equals, value = line.partition(b" ")[2].partition(b"=")
        if not (equals and value.endswith(b"\n")):
            raise TarError("an entry has an invalid header")
        found[key] = value[:-1]
    return found


class _Stream:
    """Bytes that come in parts."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._buffer = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes; fewer where there are no more."""
        while len(self._buffer) - self._at < size and (part := next(self._parts, b"")):
            self._buffer = self._buffer[self._at :] + part
            self._at = 0
        found = self._buffer[self._at : self._at + size]
        self._at += len(found)
        return found

    def skip(self, size: int) -> None:
        """Go on behind the next bytes. Raises ``TarError`` where there are fewer."""
        while size > (left := len(self._buffer) - self._at):
            size -= left
            self._buffer, self._at = next(self._parts, b""), 0
            if not self._buffer:
                raise TarError("it ends within a file")
        self._at += size

    def end(self) -> None:
        """Read to the end: behind a tar come zeros alone. Raises ``TarError``."""
        while part := self.take(1 << 16):
            if any(part):
                raise TarError("it goes on after its end")
