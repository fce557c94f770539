"""Memory that the kernel keeps for a sandbox beside what its processes have mapped:
files, and what sockets hold.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import SandboxError
from batchd.sandbox.network import queues
from batchd.sandbox.network.inside import diagnostic

#: Where it has files in memory: always, and where it was given no /tmp that lasts.
_SHM, _TMP = "dev/shm", "tmp"
#: So much of a tmpfs's own account stands for a name and for what is said about a file, in bytes.
_NAME = 1024
#: Where its sockets cannot be looked into, that is tried again after so long (seconds).
_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """The kernel's memory for a sandbox, in bytes."""

    #: Contents of files, which may be mapped as well.
    files: int = 0
    #: Files themselves, with their names and attributes.
    names: int = 0
    sockets: int = 0
    #: What its sockets may hold, where they were not looked into.
    unseen: int = 0


class KernelMemoryWatch:
    """The watch of what is kept for one sandbox. Only one look at a time."""

    def __init__(self, first: int, *, own_tmp: bool) -> None:
        """``first``: its first process. ``own_tmp``: its /tmp is memory."""
        self._first = first
        self._folders = (_SHM, _TMP) if own_tmp else (_SHM,)
        #: Reports its sockets.
        self._diagnostic: socket.socket | None = None
        self._network = 0
        self._again = 0.0
        self._closed = False

    def look(self, parent: int) -> KernelMemory:
        """Return what there is: nothing before the sandbox is made,
        and nothing once its first process, a child of ``parent``, is gone.

        To be called in any thread.
        """
        try:
            folder = os.open(f"/proc/{self._first}", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return KernelMemory()
        try:
            found = self._looked(folder)
            # The number could be another's by now; the descriptor stands for one process.
            its_parent = _read(folder, "stat").rpartition(")")[2].split()[1]
            return found if int(its_parent) == parent else KernelMemory()
        except OSError:
            return KernelMemory()
        finally:
            os.close(folder)

    @property
    def due(self) -> bool:
        """Whether its sockets are not looked into, and it is time to try."""
        return self._diagnostic is None and time.monotonic() >= self._again

    async def enter(self) -> None:
        """Look into the command's sockets from now on, if that is possible."""
        self._again = time.monotonic() + _AGAIN_S
        try:
            made = await diagnostic(self._first, self._network)
        except (OSError, SandboxError):
            return  # it has ended, most of the time
        if self._closed:
            made.close()
            return
        made.settimeout(_AGAIN_S)
        self._diagnostic = made

    def close(self) -> None:
        """Give the descriptor back, also one that is still to come."""
        self._closed = True
        if self._diagnostic is not None:
            self._diagnostic.close()
            self._diagnostic = None

    def _looked(self, folder: int) -> KernelMemory:
        made = _file_systems(folder, self._folders)
        files = sum((one.f_blocks - one.f_bfree) * one.f_frsize for one in made)
        names = sum((one.f_files - one.f_ffree) * _NAME for one in made)
        self._network = os.stat("ns/net", dir_fd=folder).st_ino
        # What shares the machine's network cannot be distinguished from what is not the command's.
        if self._network == Path("/proc/self/ns/net").stat().st_ino:
            return KernelMemory(files, names)
        sockstat = _read(folder, "net/sockstat")
        if self._diagnostic is None:
            return KernelMemory(files, names, unseen=queues.at_most(sockstat))
        return KernelMemory(
            files, names, sockets=queues.held(self._diagnostic, queues.used(sockstat))
        )


def _file_systems(process: int, names: Sequence[str]) -> list[os.statvfs_result]:
    """Return the file systems that a sandbox has at some places; none before it has a root.

    bwrap reports its first process before that one has mounted anything, and there it may wait, as
    for a kernel that is busy with the networks of other sandboxes: until then it sees the machine's
    own files, on a disk. Once it has its root, all is mounted.

    Raises ``OSError``, also while bwrap makes the root, which has none of these places by then.
    """
    # One descriptor for all: the root cannot become another one between two of these looks.
    root = os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=process)
    try:
        if os.path.samestat(os.fstat(root), Path("/").stat()):
            return []
        return [_statvfs(root, name) for name in names]
    finally:
        os.close(root)


def _statvfs(folder: int, name: str) -> os.statvfs_result:
    descriptor = os.open(name, os.O_PATH, dir_fd=folder)
    try:
        return os.fstatvfs(descriptor)
    finally:
        os.close(descriptor)


def _read(folder: int, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    finally:
        os.close(descriptor)
