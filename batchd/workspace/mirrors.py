"""Mirrors: the repositories, and copies of directories, that tasks' own begin as;
where they lie, and who uses them.

MIRRORS/NAME-HASH/source         what it is a mirror of
MIRRORS/NAME-HASH/kept/git       a bare repository with the objects; commands see ``kept`` read-only
MIRRORS/NAME-HASH/kept/clone     what the .git of a task's clone begins as
MIRRORS/NAME-HASH/kept/tree      of a directory: the copy
MIRRORS/NAME-HASH/batches/NAME   a batch that uses it, with the commits that its tasks begin at
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from batchd import decoders, trees
from batchd.records import Origin
from batchd.spool import files

_NAME = 40


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A pin: what one batch uses of a mirror."""

    batch: str
    #: Its folder in the outbox: as long as that is there, clones of its tasks may be.
    folder: str
    #: Whether it is the copy of a directory, of which nothing is needed once the batch has ended.
    copy: bool
    #: By the ref that tasks named: the commit; of a copy, the tree.
    commits: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mirror:
    """One mirror, be it there or not."""

    holder: Path

    @classmethod
    def of(cls, mirrors: str, origin: Origin, batch: str) -> Self:
        """Return that of a repository, or the copy of a directory for a batch;
        ``mirrors``: where all of them lie.
        """
        # What is read as another owner is another mirror: objects belong to who fetched them.
        whose = f"{_owner(origin)}\n{batch if origin.kind == 'copy' else ''}\n{origin.source}"
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(origin.source.rstrip("/")))
        mark = hashlib.sha256(whose.encode()).hexdigest()[:16]
        return cls(Path(os.path.realpath(mirrors), f"{name[:_NAME]}-{mark}"))

    @classmethod
    def all(cls, mirrors: str) -> Iterator[Self]:
        """Yield those that are there; what else lies in the folder is not batchd's."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(Path(os.path.realpath(mirrors)).iterdir()):
                if (folder / "batches").is_dir() and (folder / "source").is_file():
                    yield cls(folder)

    @property
    def kept(self) -> Path:
        """The folder that commands see."""
        return self.holder / "kept"

    def prepare(self, source: str) -> None:
        """Make what is missing of its holder, for batchd's user alone. Raises ``OSError``."""
        self.holder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.holder.mkdir(mode=0o700, exist_ok=True)
        (self.holder / "batches").mkdir(mode=0o700, exist_ok=True)
        (self.holder / "source").write_text(f"{source}\n")

    def pinned(self, batch: str, folder: str) -> Pin | None:
        """Return what a batch uses of it; None:
        it has not been fetched for it, or what was noted cannot be read.
        """
        return _pin_at(self._place(batch, folder))

    def pin(self, pin: Pin) -> None:
        """Note durably what a batch uses of it. Raises ``OSError``."""
        data = msgspec.json.encode(pin)
        place = self._place(pin.batch, pin.folder)
        files.write_whole(place, data, replace=True)

    def pins(self) -> Mapping[Path, Pin | None]:
        """Return what batches use of it, each with where that is noted; None: it cannot be read.

        Raises ``OSError``.
        """
        paths = (self.holder / "batches").iterdir()
        return {path: _pin_at(path) for path in paths if not path.name.startswith(".")}

    def _place(self, batch: str, folder: str) -> Path:
        # Batches of other spools may be called so as well.
        mark = hashlib.sha256(folder.encode()).hexdigest()[:8]
        return self.holder / "batches" / f"{batch}.{mark}"

    def size(self) -> int:
        """Return the room that it takes, in bytes."""
        try:
            return trees.size_at(self.holder, 5.0)
        except OSError:
            return 0

    @contextlib.contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Keep every other process out of it that asks.

        Raises ``OSError``; ``BlockingIOError`` where that is not waited for,
        and ``FileNotFoundError`` where it is gone, or another by then.
        """
        lock = self.holder / "lock"
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(lock))
            yield

    def remove(self) -> None:
        """Remove it. Raises ``OSError``."""
        trees.remove(self.holder)


def _owner(origin: Origin) -> int:
    """Return who owns what lies on this machine; -1: it does not, or is gone."""
    try:
        return -1 if origin.remote else Path(origin.source).stat().st_uid
    except OSError:
        return -1


def _pin_at(path: Path) -> Pin | None:
    try:
        return decoders.decode(path.read_bytes(), Pin)
    except (OSError, msgspec.DecodeError):
        return None
