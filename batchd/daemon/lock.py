"""The spool's lock: one daemon at a time, and none before every worker of the last one is dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from batchd import trees
from batchd.errors import SpoolLockedError

#: What workers get to die after a daemon that was killed: the kernel needs milliseconds.
_GRACE_S = 5.0
_LOOK_S = 0.02
#: The file in the state directory that names the holder.
_NAME = "lock"


def acquire(state: Path) -> int:
    """Return a descriptor that holds the lock of a state directory,
    which is made where it is missing.

    Workers get a copy of it: the lock is free when the last copy is closed.
    Raises ``SpoolLockedError``, which says who holds it.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The directory itself is locked: a file in it could be deleted,
    # and the next daemon would lock a new one.
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            if _alive(holder) or time.monotonic() > deadline:
                os.close(fd)
                raise SpoolLockedError(f"{state} is in use by {_described(holder)}") from None
            time.sleep(_LOOK_S)
        else:
            _name(fd, f"{os.getpid()}\n")
            return fd


def left_behind(state: Path) -> bool:
    """Whether the last one who held the lock did not let go of it:
    it was killed, or the machine went down.
    """
    try:
        return bool((state / _NAME).read_bytes().strip())
    except OSError:
        return False


def release(fd: int) -> None:
    """Let go of the lock; its file names no holder any more."""
    _name(fd, "")
    os.close(fd)


def _name(fd: int, text: str) -> None:
    """Write down who holds the lock: a courtesy, without which it holds as well."""
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with trees.held(os.open(_NAME, flags, 0o600, dir_fd=fd)) as file:
            os.write(file, text.encode())


def _holder(fd: int) -> int:
    """Return the process that is named as the holder; 0 where none is."""
    try:
        file = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return 0
    with trees.held(file):
        text = os.read(file, 32).strip()
    return int(text) if text.isdigit() else 0


def _described(holder: int) -> str:
    if not holder:
        return "another process, whose name is gone from its file `lock`"
    return f"the process {holder}" if _alive(holder) else "workers of a daemon that died"


def _alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
