"""Triggers: what other programs run, or obey, when somebody uses a task's directory. Which names
count stands in ``data/runs_code.toml``; the search looks for them, and for all forms of ``.git``.

Nothing is read or run for that: names and stamps show what a task has changed. Where not all of it
can be looked at, that stands among what was found, so that nothing hides behind it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import os
import stat
import time
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchd import trees
from batchd.records.policy import REST, VERSIONS, Trigger, TriggerKind
from batchd.sandbox import directory

_GIT = "git"
#: Of more than these, entries of folders and files that count, the deepest are not looked at.
_MAX_ENTRIES, _MOST_FOUND = 100_000, 2_000
#: What a folder is, beside an ordinary one, and one in which everything counts,
#: for the programs that it names.
_PLAIN, _REPOSITORY, _SHALLOW = "", "the inside of a repository", "one of which the files count"
#: What the inside of a repository is known by, under whatever name:
#: of one that stands alone or is common to others, and of one of these.
_INSIDES = (frozenset({"objects", "refs"}), frozenset({"HEAD", "commondir"}))
#: What counts in it, and what git alone fills:
#: no user works there, in one that is called .git or lies in such.
_OBEYED = frozenset({"config", "commondir"})
_STORED = frozenset({"objects", "refs", "logs", "lfs"})
#: What every ``git init`` makes, and no one runs.
_SAMPLE = ".sample"


@dataclass(frozen=True, slots=True)
class Names:
    """The names that count, and for whose programs."""

    #: Folders, with all that lies in them.
    folders: dict[str, str] = field(default_factory=dict)
    #: Files by their ends: ``/NAME``, ``/FOLDER/NAME`` or ``.ENDING``, each under its last part.
    files: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def by(self, folder: str, name: str) -> str:
        """Return whose programs run or obey a file; empty: nobody's."""
        ends = self.files.get(name) or self.files.get(os.path.splitext(name)[1], [])
        return next((by for end, by in ends if f"/{folder}/{name}".endswith(end)), "")


@functools.cache
def names() -> Names:
    """Return the names of the list."""
    found = Names()
    listed = importlib.resources.files("batchd") / "data" / "runs_code.toml"
    for by, entries in tomllib.loads(listed.read_text("utf-8")).items():
        for entry in entries:
            if entry.endswith("/"):
                found.folders[entry[:-1]] = by
            else:
                end = entry[1:] if entry.startswith("*") else f"/{entry}"
                found.files.setdefault(end.rpartition("/")[2], []).append((end, by))
    return found


def run_by_git(patch: bytes) -> Sequence[str]:
    """Return the files that a patch changes and that git,
    or what goes with it, runs or obeys; by their names alone.
    """
    found: dict[str, None] = {}
    for line in patch.split(b"\n"):
        if line.startswith((b"+++ ", b"--- ", b"rename to ", b"diff --git ")):
            for word in line.decode("utf-8", "replace").replace('"', "").split():
                path = word.removeprefix("a/").removeprefix("b/")
                parts = path.split("/")
                # A folder's name may be a link's, too.
                if "/" in word and (
                    names().by("", parts[-1]) == _GIT
                    or any(p.lower() == ".git" or names().folders.get(p) == _GIT for p in parts)
                ):
                    found[path] = None
    return list(found)


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
    folders = names().folders
    own = next((folders[part] for part in Path(path).parts if part in folders), "")
    return _Search(top, time.monotonic() + seconds).run(own)


class _Search:
    """One look through a directory, from the top down."""

    def __init__(self, top: int, deadline: float) -> None:
        self._top = top
        self._deadline = deadline
        self._names = names()
        self._waiting: deque[_At] = deque()
        self._seen = 0
        self._found: dict[str, Trigger] = {}

    def run(self, what: str) -> dict[str, Trigger]:
        self._waiting.append(_At("", "", what))
        while self._waiting:
            many = self._seen > _MAX_ENTRIES or len(self._found) > _MOST_FOUND
            if many or time.monotonic() > self._deadline:
                self._found[REST] = Trigger("", kind="folder")
                break
            at = self._waiting.popleft()
            try:
                self._look(at)
            except (FileNotFoundError, NotADirectoryError):
                pass  # a link that leads to no folder
            except OSError:
                # A link stands there already; of some folders not even a stamp can be had.
                stamp: tuple[int, ...] = ()
                with contextlib.suppress(OSError):
                    stamp = _stamp(directory.status(self._top, at.place))
                closed = Trigger("", stamp, "folder")
                self._found.setdefault(directory.shown(at.path) or REST, closed)
        return self._found

    def _look(self, at: _At) -> None:
        """Look into a folder. Raises ``OSError``."""
        with trees.held(directory.below(self._top, at.place)) as folder:
            with os.scandir(folder) as listing:
                entries = list(listing)
            self._seen += len(entries)
            if not at.what and any({e.name for e in entries} >= inside for inside in _INSIDES):
                at = replace(at, what=_REPOSITORY)
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    self._entry(entry, at)

    def _entry(self, entry: os.DirEntry[str], folder: _At) -> None:
        """Take in what lies in a folder; in the inside of a repository what git obeys, and all
        else as anywhere: any folder can be made to look like one.
        """
        name, what = entry.name, folder.what
        is_folder = entry.is_dir(follow_symlinks=False)
        inside = what == _REPOSITORY
        if inside and name == "hooks":
            self._all(entry, folder, _GIT, _GIT)
        elif inside and name in _OBEYED:
            self._add(entry, folder.entry(name), _GIT)
        elif (inside and name in _STORED and ".git" in folder.path.split("/")) or (
            what == _SHALLOW and is_folder
        ):
            pass
        elif what not in (_PLAIN, _REPOSITORY, _SHALLOW):
            self._all(entry, folder, what, what)
        elif name == ".git":
            self._all(entry, folder, _GIT, _REPOSITORY)
        elif by := self._names.folders.get(name):
            self._all(entry, folder, by, by)
        elif is_folder:
            if name not in directory.SKIPPED:
                self._waiting.append(folder.entry(name))
            elif name in VERSIONS:
                self._waiting.append(folder.entry(name, _SHALLOW))
        elif name in VERSIONS and entry.is_symlink():
            self._all(entry, folder, _GIT, _PLAIN)
        elif by := self._names.by(folder.path, name):
            self._add(entry, folder.entry(name), by)

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
        elif by != _GIT or not entry.name.endswith(_SAMPLE):
            self._add(entry, at, by)

    def _add(self, entry: os.DirEntry[str], at: _At, by: str) -> str | None:
        """Take in a file, or a link with what it leads to below the directory,
        and return where that lies.
        """
        found = entry.stat(follow_symlinks=False)
        stamp, place = _stamp(found), None
        kind: TriggerKind = "file" if stat.S_ISREG(found.st_mode) else "folder"
        if stat.S_ISLNK(found.st_mode):
            kind = "link"
        if kind == "link" and (place := directory.led(self._top, at.place)) is not None:
            # What lies elsewhere no task can change.
            with contextlib.suppress(OSError):
                target = directory.status(self._top, place)
                stamp += _stamp(target)
                kind = "file" if stat.S_ISREG(target.st_mode) else kind
        self._found[directory.shown(at.path)] = Trigger(by, stamp, kind)
        return place


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what another file in the same place has not, nor the same one once it was changed:
    only root sets st_ctime.
    """
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
