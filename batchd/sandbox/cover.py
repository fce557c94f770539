"""The cover over the machine's files for the commands of one place: what ``[sandbox]`` hides,
and sockets, since a read-only mount does not prevent connecting.

The kernel's list of sockets is read when a place is opened. Where a name of it leads to a socket,
that is covered, wherever commands see it. One that was made by a relative name, or has another
name since, is not found.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from batchd.errors import SandboxError
from batchd.sandbox import shown
from batchd.sandbox.shown import ShownPaths
from batchd.silent_paths import Mount, holding, mounts, moved, within

#: More cannot be hidden: each takes every command some 20 µs.
MAX_HIDDEN_SOCKETS = 250
#: The sockets of this process's network, a line each; a name may hold the end of one.
_LIST = Path("/proc/net/unix")
_NAME = re.compile(
    rb"^[0-9a-f]+: (?:[0-9A-F]+ ){5} *\d+ (/.*?)(?=\n[0-9a-f]+: |\n?\Z)", re.M | re.S
)

#: What is covered, each with what distinguishes it from all others: None, nothing is there.
Covered: TypeAlias = Mapping[str, tuple[int, int, int] | None]


class Cover:
    """The cover of one place: what it has found once is covered for all of its commands."""

    def __init__(self, seen: ShownPaths) -> None:
        self._shown = seen
        self._found: tuple[str, ...] | None = None

    def fresh(self) -> Cover:
        """Return one that looks again."""
        return Cover(self._shown)

    def look(self) -> Covered:
        """Look for sockets, unless that was done;
        return what a command that begins now has covered.

        Raises ``SandboxError``.
        """
        if self._found is None:
            self._found = sockets(self._shown)
        return self._covered()

    def gone(self, covered: Covered) -> bool:
        """Return whether something is not what it was, so that it could not be covered:
        then ``look`` looks again.
        """
        if self._covered() == covered:
            return False
        self._found = None
        return True

    def _covered(self) -> Covered:
        hidden = (rule.path for rule in self._shown.rules if not rule.seen)
        return {path: _identity(path) for path in (*(self._found or ()), *hidden)}

    def options(self) -> list[str]:
        """Return what bwrap does for a command that begins now:
        what has gone by now cannot be covered.
        """
        covers = [shown.covered(path) for path in filter(_is_socket, self._found or ())]
        more = (word for cover in covers for word in (*cover, *shown.still(cover)))
        return [*self._shown.options(), *more]


def sockets(seen: ShownPaths) -> tuple[str, ...]:
    """Return the paths of the sockets that commands would see, as the kernel lists them.

    Raises ``SandboxError`` for more than can be hidden, and where the kernel shows no list.
    """
    try:
        table = mounts().table()
        names = {os.fsdecode(name) for name in _NAME.findall(_LIST.read_bytes())}
    except OSError as error:
        raise SandboxError(f"the kernel does not say which sockets there are: {error}") from error
    real = functools.cache(os.path.realpath)  # many lie in one folder
    paths = (os.path.join(real(os.path.dirname(name)), os.path.basename(name)) for name in names)
    places = (place for path in paths for place in _places(path, table))
    found = {place for place in places if seen.within(place) and _is_socket(place)}
    if len(found) > MAX_HIDDEN_SOCKETS:
        raise SandboxError(
            f"{len(found):,} sockets lie below what commands see, {min(found)} among them, and only"
            f" {MAX_HIDDEN_SOCKETS} can be hidden: hide their folder with [sandbox] hide"
        )
    return tuple(sorted(found))


def _places(path: str, table: Sequence[Mount]) -> Iterator[str]:
    """Yield where else a file is found, whose real path this is, and there:
    its folder, or itself, may be mounted elsewhere too.
    """
    yield path
    mount = holding(table, path)
    if mount is not None:
        inner = moved(path, mount.place, mount.root)
        for other in table:
            if other.device == mount.device and within(inner, other.root):
                yield moved(inner, other.root, other.place)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
