"""What lies in a task's directory, all of it, and what has changed there between two looks.

No link is followed: a task may write anything into it while we look.
Names that are not UTF-8 are escaped by surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

from batchd.errors import WorkspaceError, cut
from batchd.sandbox.directory import GONE, below

#: A directory with more of them does not travel.
MAX_ENTRIES = 1_000_000
#: What the kernel's clock of files may lag behind, in nanoseconds:
#: what is younger may change without its time changing.
_TICK_NS = 20_000_000
#: A directory with a longer path does not travel, in bytes: programs name it below ``./``.
_MAX_PATH = 4093
#: Shorter ones, in characters, are not looked at for that.
_ENCODED_FROM_CHARS = _MAX_PATH // 4

#: What it takes to look into a folder, as its owner.
_ENTERED = stat.S_IRUSR | stat.S_IXUSR
#: How much is noted of a folder, and where the ctime of what is none stands.
_OF_FOLDER, _CTIME = 2, 3
#: A time that nothing has.
_NEVER = -(1 << 63)

#: Of a path: kind and mode, mtime in nanoseconds and, of files and links, size, ctime and inode.
Seen: TypeAlias = tuple[int, ...]
#: By path, the folder itself apart.
Listing: TypeAlias = Mapping[str, Seen]


@dataclass(frozen=True, slots=True)
class DirectoryLook:
    """One look at a directory."""

    seen: Listing
    #: What its own user has closed to itself:
    #: folders that cannot be looked into, files that cannot be read.
    closed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What has become of a directory: paths, sorted."""

    #: What is there no more, or as something else;
    #: of what lay in a folder that is gone, the folder alone.
    removed: tuple[str, ...] = ()
    #: What is new, or another.
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.changed)


def look(top: int) -> DirectoryLook:
    """Look at all that lies below an open folder.

    Raises ``WorkspaceError`` where that is too much, ``OSError``.
    """
    seen: dict[str, Seen] = {}
    closed: list[str] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for name, its in _entries(top, folder, closed):
            path = f"{folder}/{name}" if folder else name
            if len(path) > _ENCODED_FROM_CHARS and len(os.fsencode(path)) > _MAX_PATH:
                raise WorkspaceError(
                    f"the directory has a path of more than {_MAX_PATH:,} bytes: it cannot travel: {cut(path)}"
                )
            if stat.S_ISDIR(its.st_mode):
                seen[path] = (its.st_mode, its.st_mtime_ns)
                if its.st_mode & _ENTERED != _ENTERED:
                    closed.append(path)
                waiting.append(path)
            elif stat.S_ISREG(its.st_mode) or stat.S_ISLNK(its.st_mode):
                seen[path] = (
                    *(its.st_mode, its.st_mtime_ns),
                    *(its.st_size, its.st_ctime_ns, its.st_ino),
                )
                if stat.S_ISREG(its.st_mode) and not its.st_mode & stat.S_IRUSR:
                    closed.append(path)
        if len(seen) > MAX_ENTRIES:
            raise WorkspaceError(
                f"the directory has more than {MAX_ENTRIES:,} files: it cannot travel"
            )
    return DirectoryLook(seen, tuple(closed))


def _entries(top: int, folder: str, closed: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what lies in a folder; one that is closed is noted,
    and one that is gone, or another file system, is empty.

    Whatever else keeps us from it is raised: what cannot be seen would count as removed.
    """
    try:
        descriptor = below(top, folder)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        closed.append(folder)
        return
    except OSError as error:
        if error.errno not in GONE:
            raise
        return
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        pass  # it was removed meanwhile
    finally:
        os.close(descriptor)


def changes(before: Listing, after: Listing, closed: AbstractSet[str] = frozenset()) -> Changes:
    """Compare two looks.

    What lies in a folder that is ``closed`` at the second one is taken to be as it was.
    """
    changed = [path for path, its in after.items() if before.get(path) != its]
    gone = {
        path
        for path, its in before.items()
        if (path not in after and not _within(path, closed))
        or stat.S_IFMT(after.get(path, its)[0]) != stat.S_IFMT(its[0])
    }
    removed = (path for path in gone if os.path.dirname(path) not in gone)
    return Changes(removed=tuple(sorted(removed)), changed=tuple(sorted(changed)))


def lasting(seen: Listing) -> dict[str, Seen]:
    """Return what is surely seen as another when it changes again:
    who writes at this moment may do so unseen.
    """
    young = time.time_ns() - _TICK_NS
    return {path: its if _settled(its, young) else its[:_OF_FOLDER] for path, its in seen.items()}


def unsent(seen: Listing, paths: AbstractSet[str]) -> dict[str, Seen]:
    """Return a look by which these paths are another at the next one,
    if they are there, and gone if they are not.
    """
    return {path: (its[0], _NEVER) if path in paths else its for path, its in seen.items()}


def shared(seen: Listing, earlier: Listing) -> dict[str, Seen]:
    """Return a look that has what is as it was in an ``earlier`` one in common with that:
    it takes a third of the memory.
    """
    kept = {path: its for path, its in earlier.items() if seen.get(path) == its}
    for path, its in seen.items():
        kept.setdefault(path, its)
    return kept


def _settled(its: Seen, young: int) -> bool:
    return len(its) == _OF_FOLDER or its[_CTIME] < young


def _within(path: str, folders: AbstractSet[str]) -> bool:
    while folders and path:
        path = os.path.dirname(path)
        if path in folders:
            return True
    return False
