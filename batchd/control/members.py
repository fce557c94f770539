"""Members of the group that may drop files: where they find the daemon, and what they may ask.

The state directory, with its socket, is for the daemon's user alone. Beside it lies a folder that
the group may enter, with a socket that answers questions and takes no order.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from batchd import users
from batchd.errors import ForbiddenError
from batchd.records import group_folder

#: The verbs that it answers; what of them costs money it does not.
VERBS = frozenset({"status", "check"})


def folder(state: Path) -> Path:
    """Return where the group's socket lies."""
    return Path(group_folder(str(state)))


def dropping(inbox: Path) -> int | None:
    """Return the group that may drop files into an inbox; None: there is none."""
    try:
        found = inbox.stat()
    except OSError:
        return None
    return found.st_gid if found.st_mode & stat.S_IWGRP else None


def barred(state: Path) -> bool:
    """Whether this user is another than the daemon's: who may not enter its state directory."""
    try:
        return state.is_dir() and not os.access(state, os.X_OK)
    except PermissionError:
        return True


def owner(path: Path) -> int | None:
    """Return who a file belongs to; None: that cannot be seen."""
    try:
        return path.stat().st_uid
    except OSError:
        return None


def forbidden(what: str, state: Path) -> ForbiddenError:
    """Return that something is for the daemon's user, with the file that says who that is."""
    uid = owner(state)
    if uid is None:
        uid = owner(users.in_the_way(state))
    user = "" if uid is None else users.user(uid)
    return ForbiddenError(
        f"{what} is for {f'the user {user}' if user else 'another user'}, who alone may enter {state}",
        user=user,
    )


def no_member(place: Path) -> ForbiddenError:
    """Return that it takes a member of the group to ask a daemon;
    ``place``: what the group alone may enter.
    """
    closed = users.in_the_way(place / "socket")
    try:
        found = closed.stat()
    except OSError:
        return ForbiddenError(f"{closed} is closed to this user, who cannot ask the daemon")
    group = users.group(found.st_gid)
    return ForbiddenError(
        f"the daemon answers members of the group {group}, which alone may enter {closed}: `sudo usermod -aG "
        f"{group} {users.user(os.getuid())}` adds this user, from the next login on",
        user=users.user(found.st_uid),
    )
