"""The search of a task's directory for triggers:
what other programs run, or obey, when somebody uses it.

Nothing is read or run for that: names and stamps show what a task has changed. Where not all of it
can be looked at, that stands among what was found, so that nothing hides behind it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchd.records.triggers import (
    ENDINGS,
    FILES,
    FOLDERS,
    GIT,
    REST,
    VERSIONS,
    WITHIN,
    Trigger,
    TriggerKind,
)
from batchd.sandbox import directory

#: Of more than these, entries of folders and files that count, the deepest are not looked at.
_MAX_ENTRIES, _MOST_FOUND = 100_000, 2_000
#: What a folder is, beside an ordinary one, and one in which everything counts,
#: for the programs that it names.
_PLAIN, _REPOSITORY, _SHALLOW = "", "the inside of a repository", "one of which the files count"
#: What the inside is known by, under whatever name:
#: of one that stands alone or is common to others, and of one of these.
_INSIDES = (frozenset({"objects", "refs"}), frozenset({"HEAD", "commondir"}))
#: What counts in it, and what git alone fills:
#: no user works there, in one that is called .git or lies in such.
_OBEYED = frozenset({"config", "commondir"})
_STORED = frozenset({"objects", "refs", "logs", "lfs"})
#: What every ``git init`` makes, and no one runs.
_SAMPLE = ".sample"


@dataclass(frozen=True, slots=True)
class _At:
    """Something below the directory."""

    #: As it is called, and where it lies: no link stands on the way there.
    path: str
    place: str
    #: Of a folder, what it is.
    what: str = _PLAIN
    #: How many links have led here.
    links: int = 0

    def entry(self, name: str, what: str = _PLAIN) -> _At:
        """Return what lies in a folder."""
        path = f"{self.path}/{name}" if self.path else name
        return _At(path, f"{self.place}/{name}" if self.place else name, what, self.links)


def found(top: int, path: str, seconds: float) -> dict[str, Trigger]:
    """Return what there is below a directory, by path; ``path``: what it is called itself."""
    own = next((FOLDERS[part] for part in Path(path).parts if part in FOLDERS), "")
    return _Search(top, time.monotonic() + seconds).run(own)


class _Search:
    """One look through a directory, from the top down."""

    def __init__(self, top: int, deadline: float) -> None:
        self._top = top
        self._deadline = deadline
        self._waiting: deque[_At] = deque()
        self._seen = 0
        self._found: dict[str, Trigger] = {}

    def run(self, what: str) -> dict[str, Trigger]:
        self._waiting.append(_At("", "", what))
        while self._waiting:
            if self._exhausted:
                self._found[REST] = Trigger("", kind="folder")
                break
            folder = self._waiting.popleft()
            try:
                self._look(folder)
            except (FileNotFoundError, NotADirectoryError):
                pass  # a link that leads to no folder
            except OSError:
                # A link stands there already.
                closed = Trigger("", self._closed(folder), "folder")
                self._found.setdefault(directory.shown(folder.path) or REST, closed)
        return self._found

    @property
    def _exhausted(self) -> bool:
        many = self._seen > _MAX_ENTRIES or len(self._found) > _MOST_FOUND
        return many or time.monotonic() > self._deadline

    def _look(self, at: _At) -> None:
        """Look into a folder. Raises ``OSError``."""
        folder = directory.below(self._top, at.place)
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
            self._seen += len(entries)
            names = {entry.name for entry in entries}
            if not at.what and any(names >= inside for inside in _INSIDES):
                at = replace(at, what=_REPOSITORY)
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    self._entry(entry, at)
        finally:
            os.close(folder)

    def _entry(self, entry: os.DirEntry[str], folder: _At) -> None:
        """Take in what lies in a folder."""
        if folder.what == _REPOSITORY:
            self._in_repository(entry, folder)
        elif folder.what == _SHALLOW:
            if not entry.is_dir(follow_symlinks=False):
                self._in_plain(entry, folder)
        elif folder.what:
            self._all(entry, folder, folder.what, folder.what)
        else:
            self._in_plain(entry, folder)

    def _in_repository(self, entry: os.DirEntry[str], folder: _At) -> None:
        """Take in what git obeys, and all else as anywhere:
        any folder can be made to look like this.
        """
        if entry.name == "hooks":
            self._all(entry, folder, GIT, GIT)
        elif entry.name in _OBEYED:
            self._add(entry, folder.entry(entry.name), GIT)
        elif entry.name not in _STORED or ".git" not in folder.path.split("/"):
            self._in_plain(entry, folder)

    def _in_plain(self, entry: os.DirEntry[str], folder: _At) -> None:
        name = entry.name
        if name == ".git":
            self._all(entry, folder, GIT, _REPOSITORY)
        elif by := FOLDERS.get(name):
            self._all(entry, folder, by, by)
        elif entry.is_dir(follow_symlinks=False):
            if name not in directory.SKIPPED:
                self._waiting.append(folder.entry(name))
            elif name in VERSIONS:
                self._waiting.append(folder.entry(name, _SHALLOW))
        elif name in VERSIONS and entry.is_symlink():
            self._all(entry, folder, GIT, _PLAIN)
        elif by := (
            FILES.get(name)
            or FILES.get(f"{folder.path.rpartition('/')[2]}/{name}")
            or ENDINGS.get(os.path.splitext(name)[1])
        ):
            self._add(entry, folder.entry(name), by)
        elif name in WITHIN and _within(folder.path, WITHIN[name]):
            self._add(entry, folder.entry(name), GIT)

    def _all(self, entry: os.DirEntry[str], folder: _At, by: str, what: str) -> None:
        """Take in what counts; a folder, or one that a link leads to,
        with what counts in it: ``what`` it is.
        """
        at = folder.entry(entry.name, what)
        if entry.is_dir(follow_symlinks=False):
            self._waiting.appendleft(at)
        elif entry.is_symlink():
            place = self._add(entry, at, by)
            if place is not None and at.links < directory.LINKS:
                self._waiting.appendleft(_At(at.path, place, what, at.links + 1))
        elif by != GIT or not entry.name.endswith(_SAMPLE):
            self._add(entry, at, by)

    def _add(self, entry: os.DirEntry[str], at: _At, by: str) -> str | None:
        """Take in a file, or a link with what it leads to below the directory,
        and return where that lies.
        """
        found = entry.stat(follow_symlinks=False)
        stamp, kind, place = _stamp(found), _kind(found), None
        if kind == "link" and (place := directory.led(self._top, at.place)) is not None:
            # What lies elsewhere no task can change.
            with contextlib.suppress(OSError):
                target = directory.status(self._top, place)
                stamp += _stamp(target)
                kind = "file" if stat.S_ISREG(target.st_mode) else kind
        self._found[directory.shown(at.path)] = Trigger(by, stamp, kind)
        return place

    def _closed(self, folder: _At) -> tuple[int, ...]:
        """Return the stamp of a folder that cannot be looked into;
        empty: not even that can be had.
        """
        try:
            return _stamp(directory.status(self._top, folder.place))
        except OSError:
            return ()


def _within(folder: str, known: Sequence[str]) -> bool:
    """Whether a folder is one of those, wherever it lies."""
    return any(f"/{folder}".endswith(f"/{each}") for each in known)


def _kind(found: os.stat_result) -> TriggerKind:
    if stat.S_ISLNK(found.st_mode):
        return "link"
    return "file" if stat.S_ISREG(found.st_mode) else "folder"


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what another file in the same place has not, nor the same one once it was changed:
    only root sets st_ctime.
    """
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
