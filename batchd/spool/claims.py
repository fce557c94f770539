"""Claims: a file becomes ours by a rename to ``inbox/.claimed/ULID-NAME``.

The ULIDs of one state directory carry its mark, so that daemons with different ones can share an
inbox: each takes up again what it had claimed itself, and leaves the others' claims to them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchd.spool import files
from batchd.spool.settle import Signature, signature
from batchd.spool.ulid import LENGTH, MARK_BITS, PATTERN, Ulids, mark_of, time_of

#: Holds the mark, in the state directory.
_MARK_FILE = "claims"
#: Bytes of a name that are kept behind a ULID; a file name has 255.
_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Claim:
    """A file that is ours."""

    #: Unique, and sorts by the time of the claim.
    ulid: str
    #: The name it was dropped under; may hold newlines, and bytes that are not UTF-8 as surrogates.
    name: str
    #: Where it lies now.
    path: Path

    @property
    def received_at(self) -> float:
        """Seconds since the epoch."""
        return time_of(self.ulid)


def claimed(inbox: Path) -> list[Claim]:
    """Return what lies claimed in an inbox, by whomever, oldest first."""
    folder = inbox / ".claimed"
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 (names, by the hundred thousand)
    except FileNotFoundError:
        return []
    return [
        Claim(name[:LENGTH], name[LENGTH + 1 :], folder / name)
        for name in names
        if PATTERN.fullmatch(name[:LENGTH]) and name[LENGTH : LENGTH + 1] == "-"
    ]


class Claimer:
    """Claims files of one inbox for one state directory."""

    def __init__(self, inbox: Path, state: Path) -> None:
        self._inbox = inbox
        self._folder = inbox / ".claimed"
        self._state = state
        self._marked: tuple[int, Callable[[], str]] | None = None
        #: Renamed, but not known to be durable yet.
        self._fresh: list[Claim] = []

    def earlier(self) -> tuple[list[Claim], list[Claim]]:
        """Return what lies claimed: ours, of an earlier run, oldest first; and other daemons'."""
        mark, _ = self._mark()
        ours: list[Claim] = []
        others: list[Claim] = []
        for claim in claimed(self._inbox):
            (ours if mark_of(claim.ulid) == mark else others).append(claim)
        return ours, others

    def __len__(self) -> int:
        return len(self._fresh)

    def take(self, name: str, look: Signature) -> None:
        """Claim a file that still looks like that; ``taken`` returns it, if nobody was faster.

        Raises ``OSError``.
        """
        path = self._inbox / name
        _, ulids = self._mark()
        mark = ulids()
        target = self._folder / f"{mark}-{_short(name)}"
        try:
            # Another file of the same name may have taken its place since: that one has not settled.
            if signature(os.lstat(path)) != look:
                return
            path.rename(target)
        except FileNotFoundError:
            return  # another claimer was faster, or its owner took it back
        if _same(target, look) or _stays(target, path):
            self._fresh.append(Claim(mark, name, target))

    def taken(self) -> list[Claim]:
        """Return what was claimed since the last time, once that is durable. Raises ``OSError``."""
        if self._fresh:
            # Before anybody is told: after a power cut, a file must not be in the inbox and in the store.
            files.sync_directory(self._folder)
            files.sync_directory(self._inbox)
        fresh, self._fresh = self._fresh, []
        return fresh

    def _mark(self) -> tuple[int, Callable[[], str]]:
        if self._marked is None:
            mark = _kept(self._state / _MARK_FILE)
            self._marked = mark, Ulids(mark)
        return self._marked


def _same(target: Path, look: Signature) -> bool:
    """Whether what was claimed is the file that had settled, or is gone already: who reads it tells."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return True
    # A rename changes the last of the four, the time of its status.
    return stat.S_ISREG(found.st_mode) and signature(found)[:3] == look[:3]


def _stays(target: Path, path: Path) -> bool:
    """Put back what took a file's place in the instant of its claim; True for a file that cannot be."""
    try:
        files.rename_new(target, path)
    except FileExistsError:
        if stat.S_ISREG(os.lstat(target).st_mode):
            return True
        # Whoever put a new file in the place of a link has done away with the link.
        target.unlink()
    return False


def mark(state: Path) -> int:
    """Return the mark that the ULIDs of a state directory's claims carry. Raises ``OSError``."""
    return _kept(state / _MARK_FILE)


def _kept(path: Path) -> int:
    """Return the mark that a state directory has, from its first daemon on. Raises ``OSError``."""
    try:
        return int(path.read_bytes(), 16) & (1 << MARK_BITS) - 1
    except (FileNotFoundError, ValueError):
        mark = int.from_bytes(os.urandom(MARK_BITS // 8), "big")
        files.make_folder(path.parent, 0o700)
        files.write_whole(path, lambda file: file.write(b"%x\n" % mark), replace=True, mode=0o600)
        return mark


def _short(name: str) -> str:
    """Return a name with room for a ULID in front; its ending is kept."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME_BYTES:
        return name
    stem, ending = os.path.splitext(raw)  # noqa: PTH122 (a name in bytes)
    ending = ending[:20]
    return os.fsdecode(stem[: _NAME_BYTES - len(ending)] + ending)
