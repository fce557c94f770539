"""The spool of the user's own: where batchd works where no configuration names a place,
and never in the working directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from batchd.config import trust
from batchd.config.sections import PathsSection
from batchd.errors import ConfigError, Problem

#: The variables that say where the user's own data lies,
#: the one that counts first, and where below it.
VARIABLES: Mapping[str, str] = {"XDG_DATA_HOME": "batchd", "HOME": ".local/share/batchd"}
#: What earlier versions made in the working directory, where they had no configuration.
_FORMER = Path(".batchd", "batchd.db")


def folder(environ: Mapping[str, str]) -> Path | None:
    """Return where the user's own spool lies; None: this user has no home."""
    if environ.get("XDG_DATA_HOME", "").startswith("/"):
        return next(trust.homes(environ, VARIABLES))
    found = next(trust.homes(environ, {"HOME": VARIABLES["HOME"]}), None)
    # Accounts of services have homes that are not there, such as /nonexistent.
    return found if found and os.path.isdir(found.parents[2]) else None


def paths(environ: Mapping[str, str]) -> PathsSection | None:
    """Return the folders of the user's own spool; None: this user has no home."""
    if not (top := folder(environ)):
        return None
    defaults = PathsSection()
    return PathsSection(
        inbox=str(top / defaults.inbox),
        outbox=str(top / defaults.outbox),
        state=str(top / defaults.state),
    )


def insist(environ: Mapping[str, str]) -> PathsSection:
    """Return the folders of the user's own spool.

    Raises ``ConfigError`` where there is no home for it.
    """
    if own := paths(environ):
        return own
    why = "there is no configuration, and this user has no home for a spool of their own"
    fix = "set HOME, or name a configuration with --config or BATCHD_CONFIG"
    raise ConfigError((Problem("[paths]", why, fix),))


def holds(found: PathsSection, environ: Mapping[str, str]) -> bool:
    """Return whether what is dropped would land in the user's own spool."""
    mine = paths(environ)
    return mine is not None and (found.inbox, found.state) == (mine.inbox, mine.state)


def prepare(found: PathsSection, environ: Mapping[str, str]) -> None:
    """Make the folder of the user's own spool, for them alone, where that is meant and missing.

    Raises ``OSError``.
    """
    top = folder(environ)
    if top and holds(found, environ) and not top.is_dir():
        top.parent.mkdir(parents=True, exist_ok=True)
        top.mkdir(mode=0o700, exist_ok=True)


def former(state: str, here: Path) -> Problem | None:
    """Return that the working directory ``here`` holds what an earlier version made there,
    and ``state`` is none of it.

    It counts no longer by itself, and must not be forgotten in silence.
    """
    found = here / _FORMER
    if not os.path.isfile(found) or found.resolve().parent == Path(state).resolve():
        return None
    here = here.absolute()
    why = "it is a spool without a config.toml: earlier versions used it by themselves, this one does not"
    fix = f"if it is yours, go on with it: {command(here)}; else work in another directory"
    return Problem(str(here / _FORMER), why, fix)


def command(directory: Path | None = None) -> str:
    """Return the command that makes a spool in a directory."""
    return f"`batchd init {trust.word(directory, 'DIR') if directory else 'DIR'}`"
