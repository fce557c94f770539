"""Directories whose config.toml counts where batchd merely finds it:
two lists, which no task can write.

A model may leave a config.toml wherever it works, and without root it does so as the operator's own
user. So neither where a file lies nor whose it is says that it is meant;
that its directory is on a list does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from batchd.config import operator_files
from batchd.errors import ConfigError, NotPossibleError, Problem, UsageError
from batchd.log import escape

#: The folder of all users of this machine.
SYSTEM = Path("/etc/batchd")
#: What a configuration is called where it is found.
CONFIG = "config.toml"
#: What a list is called.
NAME = "trusted"
#: The variables that say where the user's own folder lies,
#: the one that counts first, and where below it.
VARIABLES: Mapping[str, str] = {"XDG_CONFIG_HOME": "batchd", "HOME": ".config/batchd"}
#: Characters of a path that stands in a fix.
_MAX_PATH_CHARS = 300
_HEAD = """\
# Directories whose config.toml batchd uses when it runs there; written by `batchd trust`.
# A line is a real path; before it, the number of a user whose files count there, beside root's and one's own.
"""


@dataclass(frozen=True, slots=True)
class TrustEntry:
    """A line of a list."""

    #: The real path of the directory.
    directory: str
    #: Whose files count there, beside root's and those of the user who runs batchd.
    owner: int | None = None

    def __str__(self) -> str:
        return self.directory if self.owner is None else f"{self.owner} {self.directory}"


@dataclass(frozen=True, slots=True)
class TrustList:
    """A list, as far as it may be believed."""

    file: Path
    entries: tuple[TrustEntry, ...] = ()
    #: Why it does not count.
    problem: Problem | None = None


def folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where lists and configurations lie:
    the user's own folder, where they have a home, and the system's.
    """
    return (*islice(_own(environ), 1), SYSTEM)


def _own(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield what may be the user's own folder, the one that counts first."""
    for name, below in VARIABLES.items():
        # A relative path would be another one in every directory, a task's among them.
        if (place := environ.get(name, "")).startswith("/"):
            yield Path(place, below)
    with contextlib.suppress(KeyError):  # a number without a name, as in containers
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir, VARIABLES["HOME"])


def listings(environ: Mapping[str, str]) -> tuple[TrustList, ...]:
    """Return the user's list and the system's, as they are now."""
    return tuple(_read(folder / NAME) for folder in folders(environ))


def owners(directory: Path, environ: Mapping[str, str]) -> frozenset[int]:
    """Return whose files count in a directory:
    no one's where it is on no list, and none of the folders themselves.
    """
    real = os.path.realpath(directory)
    found = {e.owner for known in listings(environ) for e in known.entries if e.directory == real}
    if not found and real not in map(os.path.realpath, folders(environ)):
        return frozenset()
    return ours() | {owner for owner in found if owner is not None}


def command(directory: Path) -> str:
    """Return the command that puts a directory on the list."""
    return f"`batchd trust {word(directory, 'DIR')}`"


def word(path: Path, name: str) -> str:
    """Return a path as a word for a shell, or what stands for one that an error would cut:
    in the middle of its quotes.
    """
    word = shlex.quote(str(path))
    return word if len(word) <= _MAX_PATH_CHARS else name


def ours() -> frozenset[int]:
    """Return whose files count everywhere: root's, and those of the user who runs batchd."""
    return frozenset({0, os.geteuid()})


def doubt(path: Path, status: os.stat_result, owners: frozenset[int]) -> Problem | None:
    """Return who else may have written a file, or may change what lies in a folder;
    None: no one.
    """
    if status.st_uid not in owners:
        why = f"it belongs to user {status.st_uid}, who decides what is there"
        return Problem(str(path), why, "chown it, or use `sudo -H`")
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & stat.S_IWOTH and not sticky:
        return Problem(str(path), "everybody can change it", f"chmod o-w {word(path, 'PATH')}")
    return None


def guarded(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what no task may write: the folders of lists and configurations,
    and what else counts where it is found.
    """
    # Who runs batchd next may have other variables than a daemon has.
    for folder in (*_own(environ), SYSTEM):
        yield from (str(folder), os.path.realpath(folder))
        for entry in _read(folder / NAME).entries:
            yield f"{entry.directory}/{CONFIG}"


def add(
    directory: str, environ: Mapping[str, str], *, system: bool = False
) -> tuple[TrustEntry, Path]:
    """Put a directory on the user's list, or the system's; return its line, and the list.

    Raises ``UsageError`` for what is not a directory,
    ``NotPossibleError`` where the list would not be believed, ``OSError``.
    """
    real = os.path.realpath(directory)
    if not Path(real).is_dir():
        raise UsageError(f"{real} is not a directory")
    if escape(real) != real:
        raise UsageError(f"{real}: a path on the list is UTF-8, without control characters")
    owner = Path(real).stat().st_uid
    known = {0} if system else ours()
    entry = TrustEntry(real, None if owner in known else owner)
    listing = _writable(environ, system=system)
    if entry not in listing.entries:
        _append(listing.file, str(entry), mode=0o644 if system else 0o600)
    return entry, listing.file


def remove(directory: str, environ: Mapping[str, str], *, system: bool = False) -> tuple[str, Path]:
    """Take a directory off the user's list, or the system's; return its path there, and the list.

    Raises as ``add`` does.
    """
    listing = _writable(environ, system=system)
    # One that is gone, or a link by now, is named as it stands on the list.
    names = (os.path.abspath(directory), os.path.realpath(directory))  # no link is followed
    known = {entry.directory for entry in listing.entries}
    name = next((name for name in names if name in known), "")
    if not name:
        raise UsageError(f"{names[-1]} is not on {listing.file}")
    lines = os.fsdecode(operator_files.content(listing.file)).split("\n")
    kept = [line for line in lines if not ((e := _entry(line)) and e.directory == name)]
    _replace(listing.file, "\n".join(kept))
    return name, listing.file


def _writable(environ: Mapping[str, str], *, system: bool) -> TrustList:
    """Return the list that is to be changed.

    Raises ``NotPossibleError`` where it would not count.
    """
    if not system and folders(environ) == (SYSTEM,):
        raise NotPossibleError(
            "this user has no home for a list: set HOME, or name the file with BATCHD_CONFIG"
        )
    listing = listings(environ)[-1 if system else 0]
    there = next(p for p in listing.file.parents if p.exists())
    # As sudo may leave HOME: what root makes in somebody's home would be closed to them.
    if problem := listing.problem or doubt(there, there.stat(), ours()):
        raise NotPossibleError(f"{listing.file} would not count: {problem}")
    return listing


def _read(file: Path) -> TrustList:
    try:
        text = os.fsdecode(operator_files.content(file, partial(_insist, file)))
    except (FileNotFoundError, NotADirectoryError):
        return TrustList(file)
    except OSError as error:
        return TrustList(file, problem=Problem(str(file), f"it cannot be read: {error.strerror}"))
    except ConfigError as error:
        return TrustList(file, problem=error.problems[0])
    return TrustList(file, tuple(filter(None, map(_entry, text.split("\n")))))


def _insist(file: Path, status: os.stat_result) -> None:
    """Refuse a list that somebody else may have written. Raises ``ConfigError``."""
    problem = doubt(file.parent, file.parent.stat(), ours()) or doubt(file, status, ours())
    if not problem and status.st_mode & stat.S_IWGRP:
        fix = f"chmod g-w {word(file, 'PATH')}"
        problem = Problem(str(file), "a group can change it", fix)
    if problem:
        raise ConfigError((problem,))


def _entry(line: str) -> TrustEntry | None:
    """Return what a line says; None: it is empty, a comment, or no such line."""
    owner, slash, rest = line.partition("/")
    if not slash or not (owner == "" or owner.removesuffix(" ").isdecimal()):
        return None
    return TrustEntry(os.path.normpath(f"/{rest}"), int(owner) if owner else None)


def _append(file: Path, line: str, *, mode: int) -> None:
    """Add a line at the end, also where others do so at the same time."""
    file.parent.mkdir(mode=0o755 if mode & 0o004 else 0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, mode)
    with open(descriptor, "r+b") as opened:
        before = opened.read()
        if not before:
            os.fchmod(descriptor, mode)
        head = "" if before.endswith(b"\n") else "\n" if before else _HEAD
        opened.write(os.fsencode(f"{head}{line}\n"))


def _replace(file: Path, text: str) -> None:
    """Replace a list as a whole: a link to it stays, and its mode."""
    target = file.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{NAME}-")
    try:
        with open(descriptor, "wb") as opened:
            os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            opened.write(os.fsencode(text))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
