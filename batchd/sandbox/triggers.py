"""Finds in a task's directory what other programs run, or obey, when somebody uses it.

Nothing is read or run for that: names and stamps tell what a task has changed. Where not all of it can be
looked at, that stands among what was found, so that nothing hides behind it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from pathlib import Path

from batchd.records.triggers import ENDINGS, FILES, FOLDERS, GIT, REST, Trigger
from batchd.sandbox import directory

#: Of more than these, entries of folders and files that count, the deepest are not looked at.
_MOST, _MOST_FOUND = 100_000, 2_000
#: What a folder is, beside an ordinary one (empty), and one in which everything counts, for the programs that it names.
_REPOSITORY = "the inside of a repository"
#: What that is known by, under whatever name; what counts in it; and what leads to more such insides.
_PARTS = frozenset({"HEAD", "objects", "refs"})
_OBEYED = frozenset({"config", "commondir"})
_LEADS_ON = frozenset({"modules", "worktrees", "rebase-merge"})
#: What every ``git init`` makes, and no one runs.
_SAMPLE = ".sample"


def found(top: int, path: str, seconds: float) -> dict[str, Trigger]:
    """Return what there is below a directory, by path; ``path``: what it is called itself."""
    own = next((FOLDERS[part] for part in Path(path).parts if part in FOLDERS), "")
    return _Search(top, time.monotonic() + seconds).run(own)


class _Search:
    """One look through a directory, from the top down."""

    def __init__(self, top: int, deadline: float) -> None:
        self._top = top
        self._deadline = deadline
        #: Paths of folders, and what they are.
        self._waiting: deque[tuple[str, str]] = deque()
        self._seen = 0
        self._found: dict[str, Trigger] = {}

    def run(self, what: str) -> dict[str, Trigger]:
        self._waiting.append(("", what))
        while self._waiting:
            if self._exhausted:
                self._found[REST] = Trigger("", kind="folder")
                break
            path, what = self._waiting.popleft()
            try:
                self._look(path, what)
            except (FileNotFoundError, NotADirectoryError):
                pass  # a link that leads to no folder
            except OSError:
                # A link stands there already; what it leads to, if it lies elsewhere, no task can change.
                closed = Trigger("", self._target(path), "folder")
                self._found.setdefault(directory.shown(path) or REST, closed)
        return self._found

    @property
    def _exhausted(self) -> bool:
        many = self._seen > _MOST or len(self._found) > _MOST_FOUND
        return many or time.monotonic() > self._deadline

    def _look(self, path: str, what: str) -> None:
        """Look into a folder; one that counts is followed where a link stands for it. Raises ``OSError``."""
        folder = directory.below(self._top, path, links=bool(what))
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
            self._seen += len(entries)
            if not what and {entry.name for entry in entries} >= _PARTS:
                what = _REPOSITORY
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    self._entry(entry, f"{path}/{entry.name}" if path else entry.name, what)
        finally:
            os.close(folder)

    def _entry(self, entry: os.DirEntry[str], path: str, what: str) -> None:
        """Take in what lies in a folder that is ``what`` it is."""
        if what == _REPOSITORY:
            self._in_repository(entry, path)
        elif what:
            self._all(entry, path, what)
        else:
            self._in_plain(entry, path)

    def _in_repository(self, entry: os.DirEntry[str], path: str) -> None:
        if entry.name == "hooks":
            self._all(entry, path, GIT)
        elif entry.name in _OBEYED:
            self._add(entry, path, GIT)
        elif entry.name in _LEADS_ON:
            self._waiting.append((path, ""))

    def _in_plain(self, entry: os.DirEntry[str], path: str) -> None:
        name = entry.name
        if name == ".git":
            self._all(entry, path, GIT, _REPOSITORY)
        elif by := FOLDERS.get(name):
            self._all(entry, path, by)
        elif entry.is_dir(follow_symlinks=False):
            if name not in directory.SKIPPED:
                self._waiting.append((path, ""))
        elif by := FILES.get(name) or ENDINGS.get(os.path.splitext(name)[1]):  # noqa: PTH122 (a name)
            self._add(entry, path, by)

    def _all(self, entry: os.DirEntry[str], path: str, by: str, what: str = "") -> None:
        """Take in what counts, a folder with all that lies in it, or what counts in it: ``what`` it is."""
        if entry.is_dir(follow_symlinks=False):
            self._waiting.appendleft((path, what or by))
        elif not entry.name.endswith(_SAMPLE):
            self._add(entry, path, by)
            if entry.is_symlink():
                self._waiting.appendleft((path, what or by))

    def _add(self, entry: os.DirEntry[str], path: str, by: str) -> None:
        status = entry.stat(follow_symlinks=False)
        stamp, kind = _stamp(status), "file" if stat.S_ISREG(status.st_mode) else "folder"
        if stat.S_ISLNK(status.st_mode):
            # What lies elsewhere no task can change.
            target, kind = self._target(path), "link"
            stamp += target
            if target and entry.is_file():
                kind = "file"
        self._found[directory.shown(path)] = Trigger(by, stamp, kind)

    def _target(self, path: str) -> tuple[int, ...]:
        """Return the stamp of what a path leads to below the top; empty: nothing."""
        try:
            target = directory.below(self._top, path, links=True, flags=os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return ()
        try:
            return _stamp(os.fstat(target))
        finally:
            os.close(target)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what another file in the same place has not, nor the same one once it was changed: only root sets st_ctime."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
