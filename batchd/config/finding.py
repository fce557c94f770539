"""The search for the configuration: the file that was named,
else the first that is found and counts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from batchd.config import foreign, operator_files, trust_lists
from batchd.errors import ConfigError, Problem

#: Names the file, as ``--config`` does.
VARIABLE = "BATCHD_CONFIG"
_NAMED = f"name the file with --config or {VARIABLE}"


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
        return operator_files.content(self.real or self.path, self._examine)

    def _examine(self, status: os.stat_result) -> None:
        if self.owners is not None:
            _insist(trust_lists.doubt(self.path, status, self.owners))


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
    if stands(file := here / trust_lists.CONFIG):
        # Before its directory is looked at:
        # none is to be trusted for the sake of another program's file.
        if problem := foreign.problem(file.absolute()):
            raise ConfigError((problem,))
        return trusted(file.absolute(), environ)
    files = (folder / trust_lists.CONFIG for folder in trust_lists.folders(environ))
    return next((ConfigFile(file, trust_lists.ours()) for file in files if stands(file)), None)


def trusted(file: Path, environ: Mapping[str, str]) -> ConfigFile:
    """Return a file that was found in a directory.

    Raises ``ConfigError`` where that, or where a link leads, is not trusted.
    """
    real = Path(os.path.realpath(file))
    for path in (Path(os.path.realpath(file.parent), file.name), real):
        owners = trust_lists.owners(path.parent, environ)
        status = path.parent.stat()
        # One that has another owner by now may have been removed, and made again by them.
        if status.st_uid not in owners:
            raise _untrusted(path, environ)
        _insist(trust_lists.doubt(path.parent, status, owners))
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


def _insist(problem: Problem | None) -> None:
    if problem:
        raise ConfigError((replace(problem, hint=f"{problem.hint}, or {_NAMED}"),))


def _untrusted(path: Path, environ: Mapping[str, str]) -> ConfigError:
    why = "its directory is not trusted, and it decides where keys are sent and what runs as you"
    fix = f"read it; if it is yours: {trust_lists.command(path.parent)}, or {_NAMED}"
    doubtful = (known.problem for known in trust_lists.listings(environ) if known.problem)
    return ConfigError((Problem(str(path), why, fix), *doubtful))
