"""Mirrors: the repositories, and copies of directories, that tasks' own begin as; where they lie, and who uses them.

MIRRORS/NAME-HASH/source         what it is a mirror of
MIRRORS/NAME-HASH/kept/git       a bare repository with the objects; commands see ``kept`` read-only
MIRRORS/NAME-HASH/kept/tree      of a directory: the copy
MIRRORS/NAME-HASH/batches/NAME   a batch that uses it, with the commits that its tasks begin at
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from batchd import trees
from batchd.records import Origin

_NAME = 40


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch uses of a mirror."""

    #: Its folder in the outbox: as long as that is there, clones of its tasks may be.
    folder: str
    #: By the ref that tasks named: the commit; of a copy, the tree.
    commits: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mirror:
    """One mirror, be it there or not."""

    holder: Path

    @classmethod
    def of(cls, mirrors: str, origin: Origin, batch: str) -> Self:
        """Return that of a repository, or the copy of a directory for a batch; ``mirrors``: where all of them lie."""
        # What is read as another owner is another mirror: objects belong to who fetched them.
        whose = f"{_owner(origin)}\n{batch if origin.kind == 'copy' else ''}\n{origin.source}"
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(origin.source.rstrip("/")))  # noqa: PTH119 (it may be a URL)
        mark = hashlib.sha256(whose.encode()).hexdigest()[:16]
        return cls(Path(os.path.realpath(mirrors), f"{name[:_NAME]}-{mark}"))

    @classmethod
    def all(cls, mirrors: str) -> Iterator[Self]:
        """Yield those that are there."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(Path(os.path.realpath(mirrors)).iterdir()):
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

    def pinned(self, batch: str) -> Pin | None:
        """Return what a batch uses of it; None: it has not been fetched for it."""
        try:
            return msgspec.json.decode((self.holder / "batches" / batch).read_bytes(), type=Pin)
        except (OSError, msgspec.DecodeError):
            return None

    def pin(self, batch: str, pin: Pin) -> None:
        """Note what a batch uses of it. Raises ``OSError``."""
        place = self.holder / "batches" / batch
        draft = place.with_name(f".{batch}")
        draft.write_bytes(msgspec.json.encode(pin))
        draft.rename(place)

    def pins(self) -> Mapping[str, Pin]:
        """Return the batches that use it."""
        with contextlib.suppress(OSError):
            names = [path.name for path in (self.holder / "batches").iterdir()]
            return {name: pin for name in names if (pin := self.pinned(name))}
        return {}

    def unpin(self, batch: str) -> None:
        """Note that a batch uses it no more."""
        (self.holder / "batches" / batch).unlink(missing_ok=True)

    def size(self) -> int:
        """Return the room that it takes, in bytes."""
        try:
            top = os.open(self.holder, trees.OPEN)
        except OSError:
            return 0
        try:
            return trees.size(top, 5.0)[0]
        finally:
            os.close(top)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of it that asks. Raises ``OSError``."""
        with (self.holder / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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
