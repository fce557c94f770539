"""Which configuration counts: the file that was named, else the first that is found; the list of
the directories in which one counts that batchd merely finds, which no task can write; and where the
user's own spool lies.

A model may leave a config.toml wherever it works, and without root it does so as the operator's own
user. So neither where a file lies nor whose it is says that it is meant; that its directory is on
the list does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from batchd import trees
from batchd.config import operator_files
from batchd.errors import ConfigError, NotPossibleError, Problem, UsageError
from batchd.log import escape

#: The folder of all users of this machine.
SYSTEM = Path("/etc/batchd")
#: What a configuration is called where it is found, and what the list is called.
CONFIG, NAME = "config.toml", "trusted"
#: Names the file, as ``--config`` does.
VARIABLE = "BATCHD_CONFIG"
_NAMED = f"name the file with --config or {VARIABLE}"
#: The variables that say where the user's own folder lies,
#: the one that counts first, and where below it.
VARIABLES: Mapping[str, str] = {"XDG_CONFIG_HOME": "batchd", "HOME": ".config/batchd"}
#: Likewise of the user's own data.
DATA: Mapping[str, str] = {"XDG_DATA_HOME": "batchd", "HOME": ".local/share/batchd"}
#: Characters of a path that stands in a fix.
_MAX_PATH_CHARS = 300
_HEAD = """\
# Directories whose config.toml batchd uses when it runs there; written by `batchd trust`.
# A line is a real path; before it, the number of a user whose files count there, beside root's and one's own.
"""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file that the configuration is read from; relative paths in it lie beside it."""

    path: Path
    #: Whose it may be; None: any user's, since it was named.
    owners: frozenset[int] | None = None
    #: Where it leads, as it was looked at:
    #: what a link leads through may be another by the time of reading.
    real: Path | None = None

    def content(self) -> bytes:
        """Return what is in it.

        Raises ``OSError``, ``ConfigError`` where somebody else may have written it.
        """

        def examine(status: os.stat_result) -> None:
            if self.owners is not None:
                _insist(doubt(self.path, status, self.owners))

        return operator_files.content(self.real or self.path, examine)


def find(environ: Mapping[str, str], here: Path) -> ConfigFile | None:
    """Return the file that counts where none was named by ``--config``; None: there is none.

    In this order: BATCHD_CONFIG, the working directory ``here``, the user's own folder, the
    system's. None is passed over: raises ``ConfigError`` for one that stands there and does not
    count.
    """
    if named := environ.get(VARIABLE):
        if not named.startswith("/"):
            why = (
                "it must be an absolute path: it counts in every directory, also in those of tasks"
            )
            raise ConfigError((Problem(VARIABLE, f"{named!a}: {why}"),))
        return ConfigFile(Path(named))
    if stands(file := here / CONFIG):
        return trusted(file.absolute(), environ)
    files = (folder / CONFIG for folder in folders(environ))
    return next((ConfigFile(file, ours()) for file in files if stands(file)), None)


def trusted(file: Path, environ: Mapping[str, str]) -> ConfigFile:
    """Return a file that was found in a directory.

    Raises ``ConfigError`` where that, or where a link leads, is not trusted.
    """
    known = listing(environ)
    real = Path(os.path.realpath(file))
    for path in (Path(os.path.realpath(file.parent), file.name), real):
        owners = known.owners(str(path.parent), environ)
        status = path.parent.stat()
        # One that has another owner by now may have been removed, and made again by them.
        if status.st_uid not in owners:
            why = "its directory is not trusted, and it decides where keys are sent and what runs as you"
            fix = f"read it; if it is yours: {command(path.parent)}, or {_NAMED}"
            doubtful = (known.problem,) if known.problem else ()
            raise ConfigError((Problem(str(path), why, fix), *doubtful))
        _insist(doubt(path.parent, status, owners))
    return ConfigFile(file, owners, real)


def stands(path: Path) -> bool:
    """Return whether there is something to read, or to fail at:
    a link to a disk that is not mounted must not be passed over.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


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


def ours() -> frozenset[int]:
    """Return whose files count everywhere: root's, and those of the user who runs batchd."""
    return frozenset({0, os.geteuid()})


def command(directory: Path) -> str:
    """Return the command that puts a directory on the list."""
    return f"`batchd trust {word(directory, 'DIR')}`"


def word(path: Path, name: str) -> str:
    """Return a path as a word for a shell, or what stands for one that an error would cut:
    in the middle of its quotes.
    """
    word = shlex.quote(str(path))
    return word if len(word) <= _MAX_PATH_CHARS else name


def homes(environ: Mapping[str, str], below: Mapping[str, str] = VARIABLES) -> Iterator[Path]:
    """Yield what may be a folder of the user's own, the one that counts first."""
    for name, rest in below.items():
        # A relative path would be another one in every directory, a task's among them.
        if (place := environ.get(name, "")).startswith("/"):
            yield Path(place, rest)
    with contextlib.suppress(KeyError):  # a number without a name, as in containers
        yield Path(pwd.getpwuid(os.geteuid()).pw_dir, below["HOME"])


def folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where configurations lie:
    the user's own folder, where they have a home, and the system's.
    """
    return (*[*homes(environ)][:1], SYSTEM)


def own_spool(environ: Mapping[str, str]) -> Path | None:
    """Return where the spool of the user's own lies, in which batchd works where no configuration
    names a place, and never in the working directory; None: this user has no home.
    """
    if environ.get("XDG_DATA_HOME", "").startswith("/"):
        return next(homes(environ, DATA))
    found = next(homes(environ, {"HOME": DATA["HOME"]}), None)
    # Accounts of services have homes that are not there, such as /nonexistent.
    return found if found and os.path.isdir(found.parents[2]) else None


def spool_command(directory: Path | None = None) -> str:
    """Return the command that makes a spool in a directory."""
    return f"`batchd init {word(directory, 'DIR') if directory else 'DIR'}`"


@dataclass(frozen=True, slots=True)
class TrustList:
    """The list, as far as it may be believed."""

    file: Path
    #: The real paths of directories,
    #: with whose files count there, beside root's and those of the user who runs batchd.
    entries: Mapping[str, int | None] = field(default_factory=dict)
    #: Why it does not count.
    problem: Problem | None = None

    def owners(self, real: str, environ: Mapping[str, str]) -> frozenset[int]:
        """Return whose files count in a directory:
        no one's where it is not on the list, and none of the folders themselves.
        """
        if real not in self.entries and real not in map(os.path.realpath, folders(environ)):
            return frozenset()
        owner = self.entries.get(real)
        return ours() | ({owner} if owner is not None else set())


def listing(environ: Mapping[str, str]) -> TrustList:
    """Return the user's list, as it is now; who has no home has an empty one."""
    folder = next(homes(environ), None)
    return _read(folder / NAME) if folder else TrustList(Path(NAME))


def _read(file: Path) -> TrustList:
    try:
        text = os.fsdecode(operator_files.content(file, partial(_believed, file)))
    except (FileNotFoundError, NotADirectoryError):
        return TrustList(file)
    except OSError as error:
        return TrustList(file, problem=Problem(str(file), f"it cannot be read: {error.strerror}"))
    except ConfigError as error:
        return TrustList(file, problem=error.problems[0])
    return TrustList(file, dict(filter(None, map(_entry, text.split("\n")))))


def _believed(file: Path, status: os.stat_result) -> None:
    """Refuse a list that somebody else may have written. Raises ``ConfigError``."""
    problem = doubt(file.parent, file.parent.stat(), ours()) or doubt(file, status, ours())
    if not problem and status.st_mode & stat.S_IWGRP:
        fix = f"chmod g-w {word(file, 'PATH')}"
        problem = Problem(str(file), "a group can change it", fix)
    if problem:
        raise ConfigError((problem,))


def _entry(line: str) -> tuple[str, int | None] | None:
    """Return what a line says; None: it is empty, a comment, or no such line."""
    owner, slash, rest = line.partition("/")
    if not slash or not (owner == "" or owner.removesuffix(" ").isdecimal()):
        return None
    return os.path.normpath(f"/{rest}"), int(owner) if owner else None


def guarded(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what no task may write: the folders of lists and configurations,
    and what else counts where it is found.
    """
    # Who runs batchd next may have other variables than a daemon has.
    for folder in (*homes(environ), SYSTEM):
        yield from (str(folder), os.path.realpath(folder))
        yield from (f"{directory}/{CONFIG}" for directory in _read(folder / NAME).entries)


def add(directory: str, environ: Mapping[str, str]) -> tuple[str, int | None, Path]:
    """Put a directory on the user's list; return its line, in two, and the list.

    Raises ``UsageError`` for what is not a directory,
    ``NotPossibleError`` where the list would not be believed, ``OSError``.
    """
    real = os.path.realpath(directory)
    if not Path(real).is_dir():
        raise UsageError(f"{real} is not a directory")
    if escape(real) != real:
        raise UsageError(f"{real}: a path on the list is UTF-8, without control characters")
    known = _writable(environ)
    owner = Path(real).stat().st_uid
    entry = real, None if owner in ours() else owner
    line = real if entry[1] is None else f"{owner} {real}"

    def added(text: str) -> str:
        if entry in map(_entry, text.split("\n")):
            return text
        if text and not text.endswith("\n"):
            text += "\n"
        return f"{text or _HEAD}{line}\n"

    _change(known.file, added)
    return *entry, known.file


def remove(directory: str, environ: Mapping[str, str]) -> tuple[str, Path]:
    """Take a directory off the user's list; return its path there, and the list.

    Raises as ``add`` does.
    """
    known = _writable(environ)
    # One that is gone, or a link by now, is named as it stands on the list.
    names = (os.path.abspath(directory), os.path.realpath(directory))  # no link is followed
    name = next((name for name in names if name in known.entries), "")
    if not name:
        raise UsageError(f"{names[-1]} is not on {known.file}")

    def removed(text: str) -> str:
        return "\n".join(e for e in text.split("\n") if (_entry(e) or ("",))[0] != name)

    _change(known.file, removed)
    return name, known.file


def _writable(environ: Mapping[str, str]) -> TrustList:
    """Return the list that is to be changed.

    Raises ``NotPossibleError`` where it would not count.
    """
    known = listing(environ)
    if not known.file.is_absolute():
        raise NotPossibleError(
            "this user has no home for a list: set HOME, or name the file with BATCHD_CONFIG"
        )
    there = next(p for p in known.file.parents if p.exists())
    # As sudo may leave HOME: what root makes in somebody's home would be closed to them.
    if problem := known.problem or doubt(there, there.stat(), ours()):
        raise NotPossibleError(f"{known.file} would not count: {problem}")
    return known


def _change(file: Path, change: Callable[[str], str]) -> None:
    """Change the list whole, also where others do so at the same time:
    a link to it stays, and its mode.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A reader takes no lock, and must not see half a line: it would be another path.
    real = os.path.realpath(file)
    with trees.held(os.open(os.path.dirname(real), os.O_RDONLY | os.O_CLOEXEC)) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text, mode = "", 0o600
        with contextlib.suppress(FileNotFoundError), open(real, "rb") as old:
            text, mode = os.fsdecode(old.read()), os.fstat(old.fileno()).st_mode & 0o777
        new = f"{real}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as made:
            os.fchmod(made.fileno(), mode)
            made.write(os.fsencode(change(text)))
            made.flush()
            os.fsync(made.fileno())
        os.rename(new, real)


def _insist(problem: Problem | None) -> None:
    if problem:
        raise ConfigError((replace(problem, hint=f"{problem.hint}, or {_NAMED}"),))
