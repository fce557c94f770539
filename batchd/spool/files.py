"""Files that appear whole, and stay: the few system calls that both ends of the spool rest on."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_counter = itertools.count()


def sync_directory(folder: Path) -> None:
    """Make renames into and out of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and what is missing above it, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_directory(folder.parent)


def write_whole(path: Path, fill: Callable[[BinaryIO], object], *, replace: bool) -> None:
    """Let ``fill`` write a file that appears under its name complete and durable, or not at all.

    Raises ``FileExistsError`` where it is there and must not be replaced.
    """
    # The process is in the name, so that two writers of one file do not meet, and leftovers are told.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}.tmp")
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            rename_new(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2].partition("-")[0]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


@cache
def _renameat2() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def rename_new(source: Path, target: Path) -> None:
    """Rename without replacing. Raises ``FileExistsError``."""
    call = _renameat2()
    names = os.fsencode(source), os.fsencode(target)
    if call and not call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
        return
    number = ctypes.get_errno() if call else errno.ENOSYS
    if number not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(number, os.strerror(number), str(source), None, str(target))
    # The file system (NFS for one) cannot do it in one step.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def move(source: Path, target: Path) -> None:
    """Move a file durably, across file systems too. Can be repeated: a finished move changes nothing.

    Raises ``FileNotFoundError`` where neither is there.
    """
    try:
        source.replace(target)
    except FileNotFoundError:
        if not target.exists():
            raise
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as original:  # noqa: PTH123 (a descriptor has no path)
            write_whole(target, lambda copy: shutil.copyfileobj(original, copy), replace=True)
        source.unlink(missing_ok=True)
    else:
        sync_directory(target.parent)
    sync_directory(source.parent)
