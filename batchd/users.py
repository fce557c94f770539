"""Users and groups of this machine by name, and how far this user gets on the way to a file."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path


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
