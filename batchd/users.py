"""Users and groups of this machine by name, and how far this user gets on the way to a file."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path

from batchd.errors import ForbiddenError


def user(uid: int) -> str:
    """Return a user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    """Return a group's name, or the number of one that has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def in_the_way(path: Path) -> Path:
    """Return the folder above a path that lets this user no further;
    else the path, or the folder in which it is missing.
    """
    there = path.absolute()
    for folder in reversed(there.parents):
        if not os.access(folder, os.X_OK):
            return folder
    return there if os.path.lexists(there) else there.parent


def closed(what: str, path: Path) -> ForbiddenError:
    """Return that this user may not use a file, with what is in the way, and whose that is."""
    place = in_the_way(path)
    try:
        found = place.stat()
    except OSError as error:
        return ForbiddenError(f"{what}: {error.strerror}")
    mine, name = found.st_uid == os.geteuid(), user(found.st_uid)
    fix = f": chmod u+rwX {place} opens it" if mine else ""
    return ForbiddenError(
        f"{what}: {place} belongs to {name}, group {group(found.st_gid)}, with mode "
        f"{stat.S_IMODE(found.st_mode):04o}{fix}",
        user="" if mine else name,
    )


def barred(state: Path) -> bool:
    """Whether this user is another than the daemon's: who may not enter its state directory."""
    try:
        return state.is_dir() and not os.access(state, os.X_OK)
    except PermissionError:
        return True


def owner(path: Path) -> str:
    """Return who a file belongs to, or where that cannot be seen, what is in the way to it;
    empty: neither shows.
    """
    for each in (path, in_the_way(path)):
        with contextlib.suppress(OSError):
            return user(each.stat().st_uid)
    return ""


def forbidden(what: str, state: Path) -> ForbiddenError:
    """Return that something is for the daemon's user, with the file that says who that is."""
    name = owner(state)
    return ForbiddenError(
        f"{what} is for {f'the user {name}' if name else 'another user'}, who alone may enter {state}",
        user=name,
    )
