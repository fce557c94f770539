"""What somebody is shown who may not do something on this machine: which file says so, whose it is, and how to go on."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from batchd import users
from batchd.errors import ForbiddenError


def lines(error: ForbiddenError, arguments: Sequence[str]) -> str:
    """Return what to say of an order, or a question, that is for another user."""
    return _with_fix(str(error), error.user, arguments)


def closed(command: str, error: PermissionError, arguments: Sequence[str]) -> str:
    """Return what to say of a file that this user may not use."""
    if not isinstance(error.filename, str):
        return f"{command}: {error.strerror or error}"
    path = Path(error.filename)
    place = users.in_the_way(path)
    try:
        found = place.stat()
    except OSError:
        return f"{command}: {path}: {error.strerror}"
    user, group = users.user(found.st_uid), users.group(found.st_gid)
    said = (
        f"{command}: {path} is closed to this user: {place} belongs to {user}, group {group}, "
        f"with mode {stat.S_IMODE(found.st_mode):04o}"
    )
    if found.st_uid == os.geteuid():
        return f"{said}; chmod gives you what it takes"
    joined = found.st_gid in {os.getegid(), *os.getgroups()}
    # Where all others may do what the group may, it helps nobody to be in it; and none joins root's.
    gains = found.st_mode >> 3 & ~found.st_mode & 0o7 and found.st_gid
    if found.st_mode & stat.S_IXGRP and gains and not joined and place.is_dir():
        me = users.user(os.getuid())
        said += f"\nA member of {group} may enter it: sudo usermod -aG {group} {me}, from the next login on"
    return _with_fix(said, user, arguments)


def _with_fix(said: str, user: str, arguments: Sequence[str]) -> str:
    if not user:
        return said
    program = Path(sys.argv[0])
    user = f"#{user}" if user.isdecimal() else user
    name = str(program.resolve()) if program.name == "batchd" else "batchd"
    return f"{said}\nAs that user: sudo -u {shlex.join([user, name, *arguments])}"
