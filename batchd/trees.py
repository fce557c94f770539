"""Directory trees, whatever agents may have made of them: taken away, measured, or made durable.

No depth, mode or name stops it, and it takes a handful of descriptors. Links are never followed;
what is mounted somewhere in a tree is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Opens a folder, and never what a link leads to.
OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Opens what nothing vouches for, to read it: follows no link, and waits for no writer of a pipe.
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: So many folders, from the top down, stay open while what lies in them is measured.
_KEPT = 16
_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what distinguishes the file that a path leads to from all others at present;
    None where there is none.
    """
    try:
        found = os.stat(path)  # each second, and before each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def held(descriptor: int) -> Iterator[int]:
    """Give what was opened, and close it in the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file durable, or the names in a folder. Raises ``OSError``."""
    with held(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library: for what Python has no call for."""
    return ctypes.CDLL(None, use_errno=True)


def sync_disk(descriptor: int) -> None:
    """Make all that was written to the disk of an open folder durable. Raises ``OSError``."""
    if libc().syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remove(path: str | os.PathLike[str], last: str = "") -> None:
    """Remove a tree, if it is there.

    What lies above it is trusted. ``last``: the name of the file in it that goes last.

    Raises ``OSError`` for what cannot be removed, and for what is no folder.
    """
    parent, name = os.path.split(os.fspath(path))
    try:
        above = os.open(parent or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with held(above), contextlib.suppress(FileNotFoundError):
        let_in(above, name)
        with held(os.open(name, OPEN, dir_fd=above)) as top:
            TreeRemoval(top, last).run()
        os.rmdir(name, dir_fd=above)


class TreeRemoval:
    """The removal of what is in a folder, level by level.

    A folder's own folders are first moved up, under new names, to the top; then it is empty but for
    files. So nothing is ever deeper than one, and what is a mount,
    which cannot be moved, is never entered.
    """

    def __init__(self, top: int, last: str = "") -> None:
        """``top``: the folder, open. ``last``: the name of the file in it that goes last of all."""
        self._top = top
        self._last = last
        self._mark = f".gone-{secrets.token_hex(8)}-"
        self._count = 0

    def run(self) -> None:
        """Leave nothing. Raises ``OSError`` for what cannot be removed."""
        waiting = list(self._unlink(self._top, keep=self._last))
        moved = [self._move_up(self._top, name) for name in waiting]
        while moved:
            name = moved.pop()
            with held(os.open(name, OPEN, dir_fd=self._top)) as folder:
                moved += [self._move_up(folder, inner) for inner in self._unlink(folder)]
            os.rmdir(name, dir_fd=self._top)
        if self._last:
            os.unlink(self._last, dir_fd=self._top)

    def _unlink(self, folder: int, keep: str = "") -> Iterator[str]:
        """Remove all but folders, whose names are yielded."""
        for name in os.listdir(folder):
            if name == keep:
                continue
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                yield name
            else:
                os.unlink(name, dir_fd=folder)

    def _move_up(self, folder: int, name: str) -> str:
        new = f"{self._mark}{self._count}"
        self._count += 1
        let_in(folder, name)  # a folder that moves is written to: its `..` changes
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=self._top)
        return new


def let_in(parent: int, name: str) -> None:
    """Give this process access to a folder, without following what may be in its place.

    Raises ``OSError``.
    """
    with held(os.open(name, _LOOK, dir_fd=parent)) as looked:
        if stat.S_IMODE(os.fstat(looked).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            # Another's folder: what follows fails, and says so, unless we are root.
            with contextlib.suppress(PermissionError):
                Path(f"/proc/self/fd/{looked}").chmod(stat.S_IRWXU)


def size(top: int, seconds: float = math.inf) -> tuple[int, bool]:
    """Return what lies below a folder, itself included,
    takes on disk in bytes, and whether that is all of it.

    It is not all where ``seconds`` of this thread's processor time are not enough, or a dozen times
    as many by the clock, or folders move meanwhile; folders that cannot be read are left out.
    """
    return _Measuring(seconds).run(top)


def size_at(path: str | os.PathLike[str], seconds: float = math.inf) -> int:
    """Return what lies at a path, as ``size`` does. Raises ``OSError`` where that is no folder."""
    with held(os.open(path, OPEN)) as top:
        return size(top, seconds)[0]


#: A look may take so many times its processor time by the clock.
_WAITS = 12


@dataclass(slots=True)
class _Level:
    """A folder on the way from the top to where we are."""

    number: int
    #: Open; -1: it was closed meanwhile.
    folder: int
    #: The names of its folders that are still to be looked into.
    waiting: list[str]


class _Measuring:
    """Goes through a tree by its entries, and back by the folders that it keeps open;
    below these by ``..``.

    So depth does not lead it astray,
    and what is moved while it is in there costs no more than what lies that deep.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.thread_time() + seconds
        self._until_clock = time.monotonic() + _WAITS * seconds
        self._device = 0
        self._bytes = 0
        self._seen = 0
        #: Files with several names, which count once.
        self._linked: set[int] = set()
        #: From the top down; the last is open.
        self._levels: list[_Level] = []
        self._whole = True

    def run(self, top: int) -> tuple[int, bool]:
        here = os.open(".", OPEN, dir_fd=top)
        status = os.fstat(here)
        self._device = status.st_dev
        self._bytes += status.st_blocks * 512
        try:
            self._enter(here)
            while self._levels:
                if self._over():
                    return self._bytes, False
                level = self._levels[-1]
                if not level.waiting:
                    self._leave()
                elif (below := self._below(level.folder, level.waiting.pop())) >= 0:
                    self._enter(below)
        finally:
            for level in self._levels:
                if level.folder >= 0:
                    os.close(level.folder)
        return self._bytes, self._whole

    def _enter(self, folder: int) -> None:
        if len(self._levels) > _KEPT:
            above = self._levels[-1]
            os.close(above.folder)
            above.folder = -1
        level = _Level(os.fstat(folder).st_ino, folder, [])
        self._levels.append(level)
        level.waiting = self._folders(folder)

    def _leave(self) -> None:
        left = self._levels.pop()
        if self._levels and self._levels[-1].folder < 0:
            above = self._levels[-1]
            with contextlib.suppress(OSError):
                above.folder = os.open("..", OPEN, dir_fd=left.folder)
            if above.folder < 0 or os.fstat(above.folder).st_ino != above.number:
                self._return()  # what we were in was moved away
        os.close(left.folder)

    def _return(self) -> None:
        """Go on with the deepest folder that was kept open."""
        self._whole = False
        if self._levels[-1].folder >= 0:
            os.close(self._levels[-1].folder)
            self._levels[-1].folder = -1
        while self._levels[-1].folder < 0:
            self._levels.pop()

    def _below(self, folder: int, name: str) -> int:
        """Return a folder in a folder, open; -1 where it cannot be read or is mounted there."""
        try:
            below = os.open(name, OPEN, dir_fd=folder)
        except OSError:
            return -1
        if os.fstat(below).st_dev == self._device:
            return below
        os.close(below)
        return -1

    def _over(self) -> bool:
        """Whether the time is over: of a processor, so that a busy machine measures no less;
        and that of a slow disk.
        """
        return time.thread_time() > self._until or time.monotonic() > self._until_clock

    def _folders(self, folder: int) -> list[str]:
        """Count what is in a folder, and return the names of its own folders."""
        found = []
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen % 256 == 0 and self._over():
                    break
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        found.append(entry.name)
                    elif status.st_nlink > 1:
                        if status.st_ino in self._linked:
                            continue
                        self._linked.add(status.st_ino)
                    self._bytes += status.st_blocks * 512
        return found
