"""The search for sockets below what commands see, at each task's start:
a read-only mount does not prevent connecting.

The kernel lists the sockets that live, with the device of their files and the names by which they
were made. Where such a name leads to the file, that is where it lies, and wherever else that is
mounted. Only for those on a device of ours whose names do not (relative ones, one that was renamed,
one with several names) the folders themselves are searched,
once for each such socket, and again where something was mounted since.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchd.errors import SandboxError
from batchd.mounts import Mount, MountView, mounts
from batchd.sandbox.shown import ShownPaths
from batchd.sandbox.socket_table import ListedSocket, listed

#: More cannot be hidden: each takes every command some 20 µs.
MAX_HIDDEN_SOCKETS = 250
#: How long an answer holds (seconds): what appears later, no command has hidden.
_FRESH_S = 0.05
#: How long a search may take (seconds); it takes a tenth of one for 50,000 files.
_PATIENCE_S = 60.0
#: Of so many sockets it is remembered where commands would see them.
_REMEMBERED = 1000
#: What the kernel lists of an inode.
_INODE = 0xFFFFFFFF
_HIDE = "hide their folder with [sandbox] hide"


class Sockets:
    """The sockets that were found; what was searched for once is remembered."""

    def __init__(self, shown: ShownPaths) -> None:
        self.shown = shown
        self._roots = tuple(shown.roots())
        #: Where a search has found some, with the inodes.
        self._searched: Mapping[str, int] = {}
        #: What was searched for, and what was mounted then.
        self._settled = _Unknown()
        #: What was mounted at the last look, and what commands see by that.
        self._view: tuple[tuple[Mount, ...], MountView] | None = None
        #: Where those lie that the kernel has listed before,
        #: and at which places commands see that, by the same.
        self._known: dict[ListedSocket, tuple[str, tuple[str, ...]]] = {}
        self._searching = asyncio.Lock()
        #: What was found last.
        self._last = _Answer()

    async def found(self) -> tuple[str, ...]:
        """Return their real paths, those that the kernel lists first; no more than can be hidden.

        Tasks that start one right after the other share an answer, unless something was mounted
        between them. Raises ``SandboxError``: the kernel lists more, or there is no end of folders.
        """
        now, mounted = time.monotonic(), _table()
        if now - self._last.at < _FRESH_S and mounted is self._last.mounted:
            return self._last.found
        answer = _Answer(await self._found(), now, mounted)
        self._last = max(answer, self._last, key=lambda each: each.at)
        return answer.found

    def forget(self) -> None:
        """Look again when asked next: what was found is not there any more."""
        self._last = _Answer()

    async def _found(self) -> tuple[str, ...]:
        named, unknown = self._look()
        if self._is_new(unknown):
            async with self._searching:
                named, unknown = self._look()
                if self._is_new(unknown):
                    self._searched = await asyncio.to_thread(search, self.shown)
        self._settled = unknown
        live = named | {path for path in self._searched if self._listed(path, unknown)}
        if len(live) > MAX_HIDDEN_SOCKETS:
            raise SandboxError(
                f"{len(live):,} sockets lie below what commands see, {min(live)} among them, and only"
                f" {MAX_HIDDEN_SOCKETS} can be hidden: {_HIDE}"
            )
        left = sorted(filter(is_socket, {*self._searched} - live))
        return (*sorted(live), *left)[:MAX_HIDDEN_SOCKETS]

    def _is_new(self, unknown: _Unknown) -> bool:
        """Return whether a search may find what the last one has not:
        another socket, or one that is elsewhere since.
        """
        last, sockets = self._settled, unknown.sockets
        new = sockets is None or bool(sockets - (last.sockets or frozenset()))
        elsewhere = bool(sockets) and unknown.mounted is not last.mounted
        return new or elsewhere or not all(map(is_socket, self._searched))

    def _listed(self, path: str, unknown: _Unknown) -> bool:
        """Return whether somebody may listen where a search has found a socket:
        the kernel lists its inode, or nothing at all.
        """
        inode, sockets = self._searched[path], unknown.sockets
        here = sockets is None or any(one.inode == inode & _INODE for one in sockets)
        return here and is_socket(path)

    def _look(self) -> tuple[set[str], _Unknown]:
        """Return the folders that sockets lie in by their names, and the sockets whose names do
        not say where.
        """
        try:
            mounted, view = self._mounted()
            sockets = listed(view.devices)
        except OSError:
            return set(), _Unknown(None)
        named: set[str] = set()
        unknown: set[ListedSocket] = set()
        for one in sockets:
            places = self._places(view, one)
            if places is None:
                unknown.add(one)
            else:
                named.update(p for p in places if _is(p, one))
        return named, _Unknown(frozenset(unknown), mounted)

    def _places(self, view: MountView, one: ListedSocket) -> tuple[str, ...] | None:
        """Return where commands would see a socket; None where no name says where it lies."""
        known = self._known.get(one)
        if known is None or not _is(known[0], one, alone=True):
            place = _place(one)
            if not place:
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            places = {place, *view.places(one.device, place)}
            known = self._known[one] = place, tuple(filter(self.shown.within, places))
        return known[1]

    def _mounted(self) -> tuple[tuple[Mount, ...], MountView]:
        """Return what is mounted, and what commands see by that. Raises ``OSError``."""
        table = mounts().table()
        if self._view is None or self._view[0] is not table:
            self._view = table, MountView.of(table, self._roots)
            self._known.clear()
        return self._view


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was found."""

    found: tuple[str, ...] = ()
    #: By the monotonic clock: before it was looked for.
    at: float = -_FRESH_S
    #: What was mounted then; None: the kernel does not say.
    mounted: tuple[Mount, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Unknown:
    """What no name says of where it lies."""

    #: None: the kernel reports nothing.
    sockets: frozenset[ListedSocket] | None = frozenset()
    #: What was mounted then.
    mounted: tuple[Mount, ...] | None = None


def _table() -> tuple[Mount, ...] | None:
    """Return what is mounted now; None: the kernel does not say."""
    try:
        return mounts().table()
    except OSError:
        return None


def search(shown: ShownPaths) -> Mapping[str, int]:
    """Return the real paths of all sockets below what commands see,
    whatever made them, with their inodes.

    Raises ``SandboxError``.
    """
    return {entry.path: entry.inode() for entry in _specials(shown) if is_socket(entry.path)}


def pipes(shown: ShownPaths) -> list[str]:
    """Return the real paths of all pipes below what commands see. Raises ``SandboxError``."""
    return sorted(entry.path for entry in _specials(shown) if _is_pipe(entry.path))


def _specials(shown: ShownPaths) -> Iterator[os.DirEntry[str]]:
    """Yield all below what commands see that is no folder, no file and no link.

    Raises ``SandboxError``.
    """
    deadline = time.monotonic() + _PATIENCE_S
    waiting = [*shown.roots()]
    while waiting:
        folder = waiting.pop()
        if shown.hides(folder):
            continue
        if time.monotonic() > deadline:
            raise SandboxError(
                f"batchd cannot search what commands see for sockets within {_PATIENCE_S:g} s: hide"
                " what they do not need, with [sandbox] hide"
            )
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
                        yield entry
        except OSError:
            # Gone, or no folder: of what is closed to us, no command can do more,
            # but by a name that the kernel lists.
            continue


def _place(one: ListedSocket) -> str:
    """Return the real path to which a socket's name leads;
    empty: not to its file, or not to all of its names.
    """
    if not one.name.startswith("/"):
        return ""
    try:
        descriptor = os.open(one.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        status = os.fstat(descriptor)
        ours = stat.S_ISSOCK(status.st_mode) and status.st_ino & _INODE == one.inode
        if ours and status.st_nlink == 1:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        return ""
    finally:
        os.close(descriptor)


def _is(path: str, one: ListedSocket, *, alone: bool = False) -> bool:
    """Return whether a socket lies there; ``alone``: and nowhere else on its device."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    same = stat.S_ISSOCK(status.st_mode) and status.st_ino & _INODE == one.inode
    return same and (status.st_nlink == 1 or not alone)


def is_socket(path: str) -> bool:
    """Return whether a socket lies there now."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except OSError:
        return False
