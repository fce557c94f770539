"""Files in memory, by which bytes reach a child without touching a disk."""

from __future__ import annotations

import fcntl
import functools
import os

from batchd import trees

# Linux's, which Python's fcntl names on some builds only.
_F_ADD_SEALS = 1033
_SEAL_ALL = 0x0F  # SEAL, SHRINK, GROW, WRITE


def memory_file(data: bytes) -> int:
    """Return a descriptor from which ``data`` can be read once. Raises ``OSError``."""
    descriptor = os.memfd_create("batchd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@functools.cache
def memory_device() -> int:
    """Return the device of such files."""
    with trees.held(memory_file(b"")) as descriptor:
        return os.fstat(descriptor).st_dev


@functools.cache
def lasting(data: bytes) -> str:
    """Return the path of a file that holds ``data`` as long
    as this process lives, and that cannot be changed.

    Each opening reads from its start. Raises ``OSError``.
    """
    descriptor = memory_file(data)
    fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_ALL)
    return f"/proc/self/fd/{descriptor}"
