"""Directories that a task may work in: below the workspace,
and clear of the spool and of what runs outside of the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import site
import stat
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from batchd import silent_paths
from batchd.config import Config, trust
from batchd.config.sections import PathsSection, repository_problem
from batchd.errors import Problem
from batchd.log import escape
from batchd.records import Origin
from batchd.records.policy import VERSIONS
from batchd.silent_paths import within

#: The kernel takes none that is longer (PATH_MAX, in bytes).
_PATH_LENGTH = 4095
#: Where the code lies.
_CODE = Path(__file__).parents[1]
#: What is said of a path that no key of the configuration allows.
OUTSIDE = " lies outside of [workspace] root and allow"
#: So many paths are allowed one by one; more by the folder that holds them.
_MAX_ONE_BY_ONE = 3
_CHECKOUT = "batchd's own checkout: work elsewhere, with [workspace] root or allow"
#: What git takes for the inside of a repository,
#: or of another working tree of one, under whatever name.
_INSIDES = (("HEAD", "objects", "refs"), ("HEAD", "commondir"))
#: Where systemd has its units, beside users' own.
_UNITS = ("/etc", "/run", "/usr/lib", "/usr/local/lib")


class TaskDirectories:
    """The directories of one task file; remembers what it has resolved.

    What does not answer, as on a disk over a lost network, raises ``SilentPathError``.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._real: dict[str, str] = {}
        #: By real path: why the configuration closes it, and why what lies in it does.
        self._known: dict[str, str] = {}
        self._insides: dict[str, str] = {}
        self._repositories: dict[str, str] = {}

    @cached_property
    def _unasked(self) -> set[str]:
        """The disks that are not known to answer: most files name no directory."""
        return silent_paths.disks()

    @cached_property
    def _open(self) -> tuple[str, ...]:
        workspace = self._config.workspace
        return tuple(self._resolved(p) for p in (workspace.root, *workspace.allow))

    @cached_property
    def _closed(self) -> dict[str, str]:
        """What no task may touch, by real path."""
        closed: dict[str, str] = {}
        found = (*self._spool(), *self._programs(), *self._configurations(), *_users())
        for path, name in found:
            closed.setdefault(self._resolved(path), name)
        return closed

    def _spool(self) -> Iterator[tuple[str, str]]:
        """Yield what batchd writes and reads."""
        paths, config = self._config.paths, self._config
        yield paths.inbox, "the inbox folder"
        yield paths.outbox, "the outbox folder"
        yield paths.state, "the state folder"
        yield config.workspace.mirrors, "the folder of mirrors"
        yield from ((path, "a key file") for path in config.key_files())
        if config.file:
            yield config.file, "the configuration"

    def _programs(self) -> Iterator[tuple[str, str]]:
        """Yield what batchd runs, itself and others, outside of every sandbox."""
        yield str(_CODE), "the program itself"
        yield sys.prefix, "the program itself"
        if (_CODE.parent / "pyproject.toml").exists():
            yield str(_CODE.parent), _CHECKOUT
        for path in (sys.base_prefix, sys.executable, site.getusersitepackages()):
            yield path, "the Python that batchd runs on"
        for receiver in self._config.notify.values():
            for word in receiver.command:
                if Path(path := shutil.which(word) or word).is_file():
                    yield path, "a program of [notify]"

    def _configurations(self) -> Iterator[tuple[str, str]]:
        """Yield where what a task writes would count for the next run of batchd,
        with a configuration or without.
        """
        for path in trust.guarded(self._config.environ):
            yield path, "where batchd looks for its configuration"
        if mine := PathsSection.own(self._config.environ):
            for path in (mine.inbox, mine.outbox, mine.state):
                yield path, "a spool of batchd's user"

    @cached_property
    def _root_works(self) -> bool:
        """Whether batchd works here as root, for any user who asks:
        a state directory of another user's it refuses, and root's no other can use.
        """
        for folder in (self._config.paths.state, self._config.paths.inbox):
            with contextlib.suppress(OSError):
                return os.stat(folder).st_uid == 0  # no link matters here
        return os.geteuid() == 0

    def real(self, directory: str) -> str:
        """Return the real path that ``dir`` means.

        Raises ``OSError`` for a link that may not be read.
        """
        return self._resolved(str(Path(self._config.workspace.root, directory)))

    def _resolved(self, path: str) -> str:
        if path not in self._real:
            silent_paths.insist(path, self._unasked)
            self._real[path] = os.path.realpath(path)
        return self._real[path]

    def problem(self, directory: str, *, must_exist: bool) -> str:
        """Return why a task may not work in ``dir``; empty: it may."""
        why, real = self._closed_to_tasks(directory)
        if not why and real not in self._insides:
            self._insides[real] = _private(real)
        return why or self._insides[real] or self._unfit(real, must_exist=must_exist)

    def repository_problem(self, repo: str, *, must_exist: bool) -> Problem | None:
        """Return why no task may have a clone of ``repo``, a URL or a path; None: it may."""
        if "://" in repo or repo.startswith("git@"):
            return repository_problem(repo, self._config.workspace.repos)
        why, real = self._closed_to_tasks(repo)
        if not why:
            if real not in self._repositories:
                self._repositories[real] = _no_repository(real)
            why = self._repositories[real] if must_exist or os.path.lexists(real) else ""
        return Problem("", why) if why else None

    def closed(self, origin: Origin) -> str:
        """Return why no task may have a clone, or a copy, of what is stored; empty: it may.

        It was asked at the claim: the configuration may be another one since, or the store come
        from elsewhere.
        """
        if origin.kind == "clone":
            wrong = self.repository_problem(origin.source, must_exist=True)
            return str(wrong) if wrong else ""
        if self.real(origin.source) != origin.source:
            return f"{origin.source}: a symbolic link is on the way"
        return self.problem(origin.source, must_exist=True)

    def _closed_to_tasks(self, directory: str) -> tuple[str, str]:
        """Return why a path is none that tasks may name, empty: it is one; and its real path."""
        if len(directory) > _PATH_LENGTH:
            # To resolve it would take a system call for each of its steps,
            # with all that stands before.
            return f"a path has at most {_PATH_LENGTH:,} characters", ""
        # Journals and results are UTF-8 and logs have lines; a link may lead to what is neither.
        if escape(directory) != directory:
            said = "a path cannot hold control characters or half characters"
            return f"{said}: {escape(directory)}", ""
        try:
            real = self.real(directory)
        except OSError as error:  # a link that may not be read, as those of another's /proc
            return f"{directory} cannot be used: {error.strerror}", ""
        if escape(real) != real:
            said = "its real path is not UTF-8, or holds control characters"
            return f"{said}: {escape(real)}", ""
        if real not in self._known:
            self._known[real] = self._refusal(real)
        return self._known[real], real

    def _unfit(self, real: str, *, must_exist: bool) -> str:
        """Return why what lies at a path is not a directory to work in; empty: it is one."""
        try:
            status = Path(real).stat()
        except FileNotFoundError:
            return f"{real} does not exist" if must_exist else ""
        except OSError as error:
            return f"{real} cannot be used: {error.strerror}"
        if not stat.S_ISDIR(status.st_mode):
            return f"{real} is not a directory"
        # Who waits for others may find it in other hands.
        if must_exist and status.st_uid == 0 and self._root_works:
            user = self._config.sandbox.user
            return f"{real} belongs to root, and commands never run as root: chown -R {user} {shlex.quote(real)}"
        return ""

    def _allowed(self, real: str) -> bool:
        tops = (self._config.workspace.root, *self._config.workspace.allow)
        if any(within(real, top) for top in tops):
            return True  # no link is on the way to what holds a real path
        silent = None
        for top in tops:
            try:
                if within(real, self._resolved(top)):
                    return True
            except silent_paths.SilentPathError as error:
                silent = error
        if silent:
            raise silent
        return False

    def _refusal(self, real: str) -> str:
        if not self._allowed(real):
            tops = ", ".join(self._open)
            return f"{real}{OUTSIDE} ({tops})"
        return self._closing(real)

    def allowing(self, paths: Iterable[str]) -> str:
        """Return how tasks get to work in directories outside of the workspace, one line for all;
        empty: they may not, wherever the workspace is.
        """
        wanted = sorted({path for path in paths if not self._closing(path)})
        if not wanted:
            return ""
        top, home = os.path.commonpath(wanted), os.path.expanduser("~")
        # /srv/repos, say; /srv, /tmp or somebody's home would open more than was meant.
        if len(wanted) > _MAX_ONE_BY_ONE and len(Path(top).parts) > 2 and not home.startswith(top):
            wanted = [top]
        allow = json.dumps([*self._config.workspace.allow, *wanted], ensure_ascii=False)
        where = f" in {self._config.file}" if self._config.file else ""
        return (
            f"to allow it, set [workspace] allow = {allow}{where}, and kill -HUP a running daemon"
        )

    def _closing(self, real: str) -> str:
        """Return why no task may work in a directory wherever the workspace is; empty: it may."""
        results = within(real, os.path.realpath(_CODE.parent / "outbox"))
        for path, name in self._closed.items():
            if results and name == _CHECKOUT:
                continue
            if real == path:
                return f"{real} is {name}"
            if within(real, path):
                return f"{real} lies in {name}"
            if within(path, real):
                return f"{real} holds {name}"
        return ""


def _users() -> Iterator[tuple[str, str]]:
    """Yield what other programs run, or believe, of batchd's user and of the system."""
    yield os.path.expanduser("~/.ssh"), "~/.ssh"
    settings = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for path in (settings, os.path.expanduser("~/.local/share"), *_UNITS):
        yield f"{path}/systemd", "a folder of systemd's units"


def _no_repository(real: str) -> str:
    """Return why a path leads to no repository that may be cloned; empty: it leads to one."""
    if not os.path.lexists(real):
        return f"{real} does not exist"
    if all(os.path.lexists(f"{real}/{name}") for name in _INSIDES[0]):
        return _private(real, bare=True)
    own = Path(real, ".git")
    if not os.path.lexists(own):
        return f"{real} is not a git repository: name the folder that holds its .git, or a bare one"
    if own.is_symlink() or not own.is_dir():
        return f"{real} has a .git that leads elsewhere: name the main working tree"
    return _private(real)


def _private(real: str, *, bare: bool = False) -> str:
    """Return why a directory is none to work in, by its name
    and by what lies in it, whosever it is; empty: it is one.

    ``bare``: it is a repository without a working tree, of which a task gets a clone.
    """
    *above, name = Path(real).parts
    for closed in (".git", ".ssh", *sorted(VERSIONS)):
        if name == closed and not bare:
            return f"{real} is a {closed}"
        if closed in above:
            return f"{real} lies in a {closed}"
    if os.path.lexists(f"{real}/.ssh"):
        return f"{real} holds a .ssh: it is somebody's home"
    for folder in (*(() if bare else (real,)), *map(str, Path(real).parents)):
        if any(all(os.path.lexists(f"{folder}/{n}") for n in names) for names in _INSIDES):
            lies = "is" if folder == real else f"lies in {folder},"
            return f"{real} {lies} the inside of a git repository: name its working tree"
    return ""
