"""Packs: files of a directory in one file that is named by the SHA-256 of what is in it, and the folder where they lie.

A pack is compressed by zstd: a line that says so, the paths that go before the files come, the folders that files come
into, each list with its length in front, and a tar, as the sandbox's own program writes it. What is in one was written
by a task: nothing here looks into it further than its lists, and they are believed only within the sandbox.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from batchd.errors import NotPossibleError, WorkspaceError
from batchd.records import Pack

if TYPE_CHECKING:
    import zstandard

_MARK = b"batchd-pack 1\n"
_LENGTH = 8
#: How it is compressed: at this level a processor takes some hundred megabytes a second.
_LEVEL = 3
#: What a pack may make its reader keep, in bytes: that of the level above, and much more than that.
_WINDOW = 1 << 27
#: Of its lists, each: a million paths, in bytes.
_MOST_NAMES = 64 << 20
_READ = 1 << 18
_DIGEST = re.compile("[0-9a-f]{64}")
_DRAFT = ".draft-"
#: A draft that was not written to for so long is one that a process has left, in seconds.
_LEFT_S = 3600.0


def library() -> None:
    """Raise ``NotPossibleError``, with the fix, where what compresses packs is not installed."""
    try:
        import zstandard  # noqa: F401, PLC0415 (an extra's)
    except ImportError as error:
        raise NotPossibleError(
            f"directories cannot travel: {error}: pip install 'batchd[cluster]'"
        ) from error


def sound(pack: Pack) -> bool:
    """Whether a pack that somebody else names can be one."""
    return bool(_DIGEST.fullmatch(pack.digest)) and pack.size > 0 and pack.plain > 0


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
        import zstandard  # noqa: PLC0415 (an extra's)

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
        """Take the next bytes of the tar. Raises ``OSError``, and ``WorkspaceError`` where they are too many."""
        self._plain += len(data)
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
    """A pack, opened: its lists, and then its tar, once."""

    def __init__(self, file: BinaryIO, pack: Pack) -> None:
        """Raises ``WorkspaceError`` where it is none, ``OSError``."""
        self._left = pack.plain
        self._parts = _decompressed(file)
        self._buffer = b""
        if self._exactly(len(_MARK)) != _MARK:
            raise WorkspaceError("it is no pack")
        removed = self._names()
        self.lists = Lists(removed=removed, folders=self._names())

    def _names(self) -> tuple[str, ...]:
        length = int.from_bytes(self._exactly(_LENGTH), "big")
        if length > _MOST_NAMES:
            raise WorkspaceError("it is a pack with too many names")
        names = self._exactly(length).split(b"\0")
        return tuple(os.fsdecode(name) for name in names if name)

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
        rest, self._buffer = self._buffer, b""
        while rest:
            yield rest
            rest = self._next()


def _decompressed(file: BinaryIO) -> Iterator[bytes]:
    """Yield what a file holds. Raises ``WorkspaceError``."""
    import zstandard  # noqa: PLC0415 (an extra's)

    reader: zstandard.ZstdDecompressionReader = zstandard.ZstdDecompressor(
        max_window_size=_WINDOW
    ).stream_reader(file, read_size=_READ)
    try:
        while part := reader.read(_READ):
            yield part
    except zstandard.ZstdError as error:
        raise WorkspaceError(f"it is no pack: {error}") from error


class Shelf:
    """A folder of packs, each under its name, for its owner alone. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder, and remove what processes that were killed have left. Raises ``OSError``."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in self._folder.glob(f"{_DRAFT}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _LEFT_S:
                    draft.unlink()

    def path(self, pack: Pack) -> Path:
        """Return where a pack lies, if it does."""
        return self._folder / pack.digest

    def draft(self) -> Path:
        """Return the path of a file that is yet to be written."""
        return self._folder / f"{_DRAFT}{secrets.token_hex(8)}"

    def has(self, pack: Pack) -> bool:
        """Whether a pack is there; then it counts as used just now."""
        try:
            os.utime(self.path(pack))
            return self.path(pack).stat().st_size == pack.size
        except OSError:
            return False

    def keep(self, draft: Path, pack: Pack) -> None:
        """Have a draft be the pack, durably, once it is known to be. Raises ``WorkspaceError``, ``OSError``."""
        with draft.open("rb+") as file:
            if file.seek(0, os.SEEK_END) != pack.size:
                raise WorkspaceError("it is another pack: its size is not the one that it has")
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != pack.digest:
                raise WorkspaceError("it is another pack: its hash is not its name")
            os.fsync(file.fileno())
        draft.rename(self.path(pack))
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def reading(self, pack: Pack) -> Iterator[Reading]:
        """Give a pack's contents. Raises ``WorkspaceError``, ``OSError``."""
        with self.path(pack).open("rb") as file:
            yield Reading(file, pack)

    def _all(self) -> Iterable[Path]:
        return (path for path in self._folder.iterdir() if _DIGEST.fullmatch(path.name))

    def sweep(self, needed: Collection[str], young_s: float = 0.0) -> int:
        """Remove all packs but those with these digests, and return how many bytes that frees. Raises ``OSError``.

        ``young_s``: what has its name for a shorter time stays.
        """
        freed, born = 0, time.time() - young_s
        for path in self._all():
            with contextlib.suppress(FileNotFoundError):
                if path.name not in needed and not (young_s and path.stat().st_ctime > born):
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def trim(self, most: int) -> None:
        """Remove those that were not used for longest, down to so many bytes. Raises ``OSError``."""
        found = []
        for path in self._all():
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        size = sum(each[1] for each in found)
        for _, its, path in sorted(found, key=lambda each: each[0]):
            if size <= most:
                break
            path.unlink(missing_ok=True)
            size -= its
