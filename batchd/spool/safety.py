"""Safety of a spool, seen to before work begins there: who else may write where batchd works, or
read what it keeps; and what commands would see of batchd's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from batchd import sandbox, silent_paths
from batchd.config import Config, operator_files
from batchd.errors import ConfigError, NotPossibleError
from batchd.log import Action, get_logger
from batchd.spool import files

_OTHERS_WRITE = stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Exposure:
    """A file or folder that is open to whom it should not be."""

    path: str
    why: str
    fix: str
    #: Whether batchd must not work like this.
    grave: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.why}; {self.fix}"


def exposures(config: Config) -> Iterator[Exposure]:
    """Find what is open to others; what is not there yet, batchd makes as it should be."""
    paths = config.paths
    for look, folder in ((_state, paths.state), (_inbox, paths.inbox), (_outbox, paths.outbox)):
        if status := _status(folder):
            yield from look(folder, status)
    if config.file:
        yield from _trusted(config.file, "a user who writes it decides what runs here, and as whom")
        if operator_files.holds_secrets(config):
            yield from _legible(config.file, "it holds keys")
    for file in config.key_files():
        yield from _legible(file, "it holds a key")
        yield from _trusted(file, "a user who writes it decides whose account pays")
    if config.metrics.exposed:
        why = "other machines can read there which models run, how much, and what it costs"
        fix = "if you do not want that, listen at 127.0.0.1"
        yield Exposure(f"[metrics] listen, {config.metrics.listen}", why, fix)
    ours = (paths.state, paths.inbox, paths.outbox, config.file or "/")
    for above in sorted({folder for path in ours for folder in Path(path).parents}):
        if (found := _status(above)) and _open_to_all(found):
            why = "everybody can replace what lies in it"
            yield Exposure(
                str(above), why, f"chmod o-w {quote(str(above))}, or chmod +t {quote(str(above))}"
            )
    for path in (paths.inbox, paths.outbox):
        yield from _way(path)


def _way(path: str) -> Iterator[Exposure]:
    """Find whose folders and links lead to a folder in which batchd writes,
    or takes files away: who has one chooses where.
    """
    real = os.path.realpath(path)
    above = {*Path(path).parents, *Path(real).parents} - {Path("/")}
    for folder in sorted(above):
        if (found := _status(folder)) and not _ours(found):
            why = f"it belongs to user {found.st_uid}, who can replace what leads to {path}"
            fix = f"chown {os.geteuid()} {folder}, or name another folder in [paths]"
            yield Exposure(str(folder), why, fix, grave=os.geteuid() == 0)
    there = next((p for p in (Path(path), *Path(path).parents) if _status(p)), Path("/"))
    try:
        os.close(files.enter(there))
    except PermissionError as error:
        if files.TURNED in str(error):
            why, fix = str(error.strerror).split(": ", 1)
            yield Exposure(path, why, fix, grave=True)
    except OSError:
        return  # what uses it says so


def insist(config: Config) -> None:
    """Warn of what is open to others.

    Raises ``NotPossibleError``, with the fix, where that is no way to work.
    """
    for found in exposures(config):
        if found.grave:
            raise NotPossibleError(str(found))
        get_logger().warning(Action.EXPOSED, path=found.path, message=found.why, mend=found.fix)


def _state(state: str, found: os.stat_result) -> Iterator[Exposure]:
    if not _ours(found):
        why = f"it belongs to user {found.st_uid}, who can change everything in it"
        yield Exposure(state, why, "chown it, or set another [paths] state", grave=True)
    if found.st_mode & 0o022:
        why = "others can change what is in it"
        yield Exposure(state, why, f"chmod 700 {quote(state)}", grave=True)
    elif found.st_mode & 0o055:
        yield Exposure(state, "others can look into it", f"chmod 700 {quote(state)}")


def _inbox(inbox: str, found: os.stat_result) -> Iterator[Exposure]:
    if _open_to_all(found):
        why = "everybody can take away and replace what others drop"
        yield Exposure(inbox, why, f"chmod o-w {quote(inbox)}, or chmod +t {quote(inbox)}")
    elif found.st_mode & stat.S_IWGRP and not found.st_mode & stat.S_ISVTX:
        why = "members of its group can take away and replace what others drop"
        yield Exposure(inbox, why, f"chmod +t {quote(inbox)}")
    elif found.st_mode & _OTHERS_WRITE:
        why = "every user of this machine can have tasks run, and paid"
        yield Exposure(inbox, why, f"if you do not want that, chmod o-w {quote(inbox)}")


def _outbox(outbox: str, found: os.stat_result) -> Iterator[Exposure]:
    if not _ours(found):
        why = f"it belongs to user {found.st_uid}, who can put links where results are written"
        yield Exposure(outbox, why, f"chown {os.geteuid()} {outbox}", grave=os.geteuid() == 0)
    if found.st_mode & _OTHERS_WRITE:
        # By a link in the place of a batch's folder they would choose where root writes.
        why = "everybody can put links where results are written"
        yield Exposure(outbox, why, f"chmod o-w {outbox}", grave=os.geteuid() == 0)


def _legible(file: str, what: str) -> Iterator[Exposure]:
    if operator_files.open_to_all(file):
        yield Exposure(file, f"{what}, and others can read it", f"chmod o-r {quote(file)}")


def _trusted(file: str, why: str) -> Iterator[Exposure]:
    found = _status(file)
    if found and not _ours(found):
        yield Exposure(
            file, f"it belongs to user {found.st_uid}: {why}", f"chown {os.geteuid()} {file}"
        )
    elif found and found.st_mode & _OTHERS_WRITE:
        yield Exposure(file, f"everybody can write it: {why}", f"chmod o-w {file}")


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in {0, os.geteuid()}


def _open_to_all(found: os.stat_result) -> bool:
    """Return whether everybody can take a folder's entries away: no sticky bit keeps them."""
    return bool(found.st_mode & _OTHERS_WRITE) and not found.st_mode & stat.S_ISVTX


def _status(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # Path.stat raises for more than what is missing, too
    except OSError:
        return None


def refuse_seen(config: Config) -> None:
    """Return if commands see nothing of the spool and of secrets; asked at each reload too.

    Raises ``ConfigError`` with all that they would.

    Raises ``NotPossibleError`` where what they see cannot be found out, also since a folder
    does not answer.
    """
    own = [*operator_files.kept(config, config.file)]
    silent_paths.refuse(*(place.path for place in own))
    try:
        problems = tuple(sandbox.seen(config.sandbox_policy(), own))
    except ValueError as error:
        raise NotPossibleError(str(error)) from None
    if problems:
        raise ConfigError(problems, config.file)


def warn_of_seen(config: Config) -> None:
    """Report what they see and had better not: what other tasks work on, a home;
    not of a folder that does not answer.
    """
    places = [*operator_files.exposed(config)]
    silent = silent_paths.among(place.path for place in places)
    there = [place for place in places if place.path not in silent]
    for problem in sandbox.seen(config.sandbox_policy(), there, around=False):
        path, why = problem.place, problem.message
        get_logger().warning(Action.EXPOSED, path=path, message=why, mend=problem.hint)
