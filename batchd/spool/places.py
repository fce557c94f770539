"""Folders that stay open: what is done in one is done there, whatever comes to bear its name."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: As many links as the kernel follows on one way.
_LINKS = 40
#: What is said of another's link.
TURNED = "who could have it lead elsewhere"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: On the way, where we may pass and not look.
_PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(path: Path) -> int:
    """Return a folder's descriptor. Links on the way count where root or this user made them.

    Raises ``OSError``, with the fix where somebody else's link leads there.
    """
    ahead = [*Path(os.path.abspath(path)).parts[1:]]  # a link's .. is where it leads
    links = 0
    here = os.open("/", _PASSED)
    try:
        while ahead:
            name = ahead.pop(0)
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                _check(path, name, found.st_uid, links)
                target = Path(os.readlink(name, dir_fd=here))
                ahead[:0] = target.parts[1:] if target.is_absolute() else target.parts
                name = "/" if target.is_absolute() else "."
            further = os.open(name, _PASSED, dir_fd=here)
            os.close(here)
            here = further
        return os.open(".", _FOLDER, dir_fd=here)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(here)


def inside(parent: int, name: str, path: Path) -> int:
    """Return the descriptor of a folder in an open one: no link in its place.

    ``path`` is what errors name.
    """
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            why = "something else is in the place of this folder: remove it"
            raise OSError(errno.ENOTDIR, why, str(path)) from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def ours_alone(folder: int) -> bool:
    """Whether an open folder belongs to this user, and no one else can write into it."""
    found = os.fstat(folder)
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def keeps_apart(folder: int) -> bool:
    """Whether no one can take away from an open folder what is another's:
    they cannot write there, or it is sticky.
    """
    found = os.fstat(folder)
    return bool(found.st_mode & stat.S_ISVTX or not found.st_mode & 0o022)


def _check(path: Path, link: str, owner: int, links: int) -> None:
    """Raise ``OSError`` where a link on the way to ``path``,
    one of so many, is not to be followed.
    """
    if owner not in {0, os.geteuid()}:
        why = (
            f"{link} on the way there is a link of user {owner}, {TURNED}: name the folder "
            "itself, or let root or the daemon's own user make the link"
        )
        raise OSError(errno.EPERM, why, str(path))
    if links > _LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
