"""The spool's lock: one daemon at a time, and none before every worker of the last one is dead."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from batchd.errors import SpoolLockedError

#: What workers get to die after a daemon that was killed: the kernel needs milliseconds.
_GRACE_S = 5.0
_LOOK_S = 0.02


def acquire(state: Path) -> int:
    """Return a descriptor that holds the lock of a state directory, which is made where it is missing.

    Workers get a copy of it: the lock is free when the last copy is closed.
    Raises ``SpoolLockedError``, which says who holds it.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            if _alive(holder) or time.monotonic() > deadline:
                os.close(fd)
                who = f"the process {holder}" if _alive(holder) else "workers of a daemon that died"
                raise SpoolLockedError(f"{state} is in use by {who}") from None
            time.sleep(_LOOK_S)
        else:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd


def release(fd: int) -> None:
    """Let go of the lock; nobody is named as its holder any more."""
    os.ftruncate(fd, 0)
    os.close(fd)


def _holder(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


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
