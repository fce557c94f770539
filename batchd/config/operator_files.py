"""Files that the operator names: the configuration, and the secrets that do not stand in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from batchd import users
from batchd.errors import ForbiddenError, NotPossibleError


def content(
    path: str | Path, examine: Callable[[os.stat_result], object] = lambda _: None
) -> bytes:
    """Return what is in a file.

    Raises ``OSError``, for a FIFO too: a reader of one would wait for its writer.

    ``examine`` is shown the file that is then read; what it raises ends the reading.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, which cannot be read again")
        examine(status)
        return file.read()


def secret(what: str, *, file: str, env: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return what a file holds now, or else a variable, without space around it;
    and what to call that place.

    Raises ``NotPossibleError``, which says ``what`` cannot be read, where the file cannot.
    """
    if not file:
        return environ.get(env, "").strip(), f"the environment variable {env}"
    place = f"the file {file}"
    try:
        return content(file).decode().strip(), place
    except PermissionError:
        raise _closed(f"{what} cannot be read from {place}", Path(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise NotPossibleError(f"{what} cannot be read from {place}: {why}") from None


def _closed(what: str, file: Path) -> NotPossibleError:
    """Return why this user may not read a file, and who may."""
    place = users.in_the_way(file)
    try:
        found = place.stat()
    except OSError as error:
        return NotPossibleError(f"{what}: {error.strerror}")
    if found.st_uid == os.geteuid():
        return NotPossibleError(f"{what}: chmod u+rX {place} lets you read it")
    user, me = users.user(found.st_uid), users.user(os.geteuid())
    said = f"{what}: {place} belongs to {user}, with mode {stat.S_IMODE(found.st_mode):04o}"
    if found.st_uid == 0:
        fix = (
            "move it to where this user may read it" if place != file else f"sudo chown {me} {file}"
        )
        return NotPossibleError(f"{said}: {fix}")
    return ForbiddenError(said, user=user)
