"""The format of packs: files of a directory in one file, compressed by zstd.

A line that says so, the paths that go before the files come, the folders that files come into, each
list with its length in front, and a tar, as the sandbox's own program writes it. What is in one was
written by a task: nothing here looks into it further than its lists, none of which is ever in
memory as a whole once it is a file, and they are believed only within the sandbox.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from batchd.errors import WorkspaceError
from batchd.records import Pack

if TYPE_CHECKING:
    import zstandard

_MARK = b"batchd-pack 1\n"
_LENGTH = 8
#: How it is compressed: at this level a processor takes some hundred megabytes a second.
_LEVEL = 3
#: What a pack may make its reader keep, in bytes: that of the level above, and more.
_WINDOW = 1 << 23
#: Of its lists, each, in bytes;
#: they have no more paths than a directory (``directory_listing.MAX_ENTRIES``).
_MOST_NAMES = 64 << 20
#: Of a path, in bytes: what the kernel takes.
_MOST_NAME = 4096
#: What a tar says of all files beside what is in them, in bytes: each of a million has four blocks.
_HEADS = 2048 * 1_000_000
_READ = 1 << 18


def plain_limit(most: int) -> int:
    """Return the bytes that a pack may unpack to where its files may have ``most``."""
    return most + _HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """What stands in a pack before its files."""

    #: What goes, with all that lies in it.
    removed: tuple[str, ...] = ()
    #: The folders that something comes into, or goes from.
    folders: tuple[str, ...] = ()


class Writer:
    """Writes a pack to a new file, whose descriptor it owns."""

    def __init__(self, path: Path, lists: Lists, most: int) -> None:
        """``most``: the bytes that it may have. Raises ``OSError``."""
        import zstandard

        self._path = path
        self._file = open(  # noqa: SIM115 (it is closed by ``done`` or ``drop``)
            path, "xb", buffering=_READ, opener=_private
        )
        self._compress = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._hash = hashlib.sha256()
        self._most = most
        self._size = self._plain = 0
        self.add(_MARK)
        for names in (lists.removed, lists.folders):
            joined = b"".join(os.fsencode(name) + b"\0" for name in names)
            if len(joined) > _MOST_NAMES:
                self.drop()
                raise WorkspaceError("what has changed has too many names to travel")
            self.add(len(joined).to_bytes(_LENGTH, "big"))
            self.add(joined)

    def add(self, data: bytes) -> None:
        """Take the next bytes of the tar.

        Raises ``OSError``, and ``WorkspaceError`` where they are too many.
        """
        self._plain += len(data)
        if self._plain > plain_limit(self._most):
            raise WorkspaceError(f"what would travel has more than {self._most:,} bytes, unpacked")
        self._out(self._compress.compress(data))

    def _out(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most:
            raise WorkspaceError(f"what would travel has more than {self._most:,} bytes")
        self._hash.update(data)
        self._file.write(data)

    def done(self) -> Pack:
        """Return what was written. Raises as ``add`` does."""
        self._out(self._compress.flush())
        self._file.close()
        return Pack(digest=self._hash.hexdigest(), size=self._size, plain=self._plain)

    def drop(self) -> None:
        """Remove the file: it was not written to its end."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


class Reading:
    """A pack, opened.

    It is read once, in this order: ``removed``, ``folders``, ``tar``;
    what is left of one is passed over.
    """

    def __init__(self, file: BinaryIO, pack: Pack) -> None:
        """Raises ``WorkspaceError`` where it is none, ``OSError``."""
        self._left = pack.plain
        self._parts = _decompressed(file)
        self._buffer = b""
        if self._exactly(len(_MARK)) != _MARK:
            raise WorkspaceError("it is not a pack")
        self._removed = self._names()
        self._folders = self._names()

    def removed(self) -> Iterator[bytes]:
        """Yield the paths that go, with all that lies in them. Raises as the constructor does."""
        return self._removed

    def folders(self) -> Iterator[bytes]:
        """Yield the folders that something comes into, or goes from.

        Raises as the constructor does.
        """
        _pass_over(self._removed)
        yield from self._folders

    def _names(self) -> Iterator[bytes]:
        """Yield the paths of the list that comes next; only what is yielded is in memory."""
        left = int.from_bytes(self._exactly(_LENGTH), "big")
        if left > _MOST_NAMES:
            raise WorkspaceError("it is a pack with too many names")
        rest = b""
        while left:
            part = self._exactly(min(left, _READ))
            left -= len(part)
            *names, rest = (rest + part).split(b"\0")
            yield from filter(None, names)
            if len(rest) > _MOST_NAME:
                raise WorkspaceError("it is a pack with a name that is too long")
        if rest:
            raise WorkspaceError("it is a pack with a list that has no end")

    def _exactly(self, length: int) -> bytes:
        parts, size = [self._buffer], len(self._buffer)
        while size < length:
            part = self._next()
            if not part:
                raise WorkspaceError("it is a pack that has no end")
            parts.append(part)
            size += len(part)
        whole = b"".join(parts)
        self._buffer = whole[length:]
        return whole[:length]

    def _next(self) -> bytes:
        part = next(self._parts, b"")
        self._left -= len(part)
        if self._left < 0:
            raise WorkspaceError("it is a pack that holds more than it says")
        return part

    def tar(self) -> Iterator[bytes]:
        """Yield what is behind the lists. Raises as the constructor does."""
        _pass_over(self._removed)
        _pass_over(self._folders)
        rest, self._buffer = self._buffer, b""
        while rest:
            yield rest
            rest = self._next()


def _pass_over(names: Iterator[bytes]) -> None:
    for _ in names:
        pass


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a file holds. Raises ``WorkspaceError``."""
    import zstandard

    reader: zstandard.ZstdDecompressionReader = zstandard.ZstdDecompressor(
        max_window_size=_WINDOW
    ).stream_reader(file, read_size=_READ)
    try:
        while part := reader.read(_READ):
            yield part
    except zstandard.ZstdError as error:
        raise WorkspaceError(f"it is not a pack: {error}") from error
