"""Open files and mappings of processes, as /proc shows them:
files without a name, and memory of the kernel's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import math
import os
import stat
import struct
import termios
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batchd.sandbox.command_user import as_root
from batchd.sandbox.process_table import ProcessUsage

#: What the kernel calls files in memory that are mapped.
_MEMORY = ("/memfd:", "/dev/zero", "/SYSV")
# What the kernel needs for one, measured, in bytes. Of a pipe: the two pages that each has where
# its user has many; of a terminal: what both sides may have written and not read;
# of a mapping: what describes it.
_DESCRIPTOR, _PIPE, _TERMINAL, _MAPPING, _FILE = 512, 9 << 10, 64 << 10, 256, 1 << 10
#: Of events of files that were not read yet:
#: what they take, for each byte that reading them would give.
_QUEUED = 3
_INOTIFY = "anon_inode:inotify"
#: What opens new terminals, and is their one end.
_PTMX = os.makedev(5, 2)
#: What a process has mapped is described in tables, a page for so many bytes at the most.
_TABLE = 512
_MIN_TABLED_BYTES = 16 << 20
_SYS_PIDFD_GETFD = 438  # on all processors


@dataclass(slots=True)
class OpenFiles:
    """The open files and mappings of processes, together."""

    #: What files without a name take, in bytes, by device and number:
    #: deleted ones, and files in memory.
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    #: … and how much of them is mapped, at least, where the kernel does not show more.
    mapped: dict[tuple[int, int], int] = field(default_factory=dict)
    descriptors: int = 0
    mappings: int = 0
    terminals: int = 0
    pipes: set[int] = field(default_factory=set)
    #: Events of files that were not read yet, in bytes as they would be read.
    queued: int = 0

    @classmethod
    def by(cls, processes: Iterable[ProcessUsage], enough: float = math.inf) -> OpenFiles:
        """Look at what these have, until the kernel needs more than ``enough`` for it."""
        there = list(processes)
        found = cls(descriptors=sum(_count(process.number) for process in there))
        for process in there:
            if found.kernel() > enough:
                break
            with contextlib.suppress(OSError):
                found._descriptors(process.number)
            with contextlib.suppress(OSError):
                found._mapped(Path("/proc", str(process.number)))
        return found

    def nameless(self, devices: Iterable[int]) -> Mapping[int, int]:
        """Return what files without a name take, in bytes by device.

        What is mapped alone the kernel shows to root.
        To others it shows how much of a file on a disk is mapped, at least.
        """
        found = dict.fromkeys(devices, 0)
        for (device, _), size in (self.mapped | self.sizes).items():
            if device in found:
                found[device] += size
        return found

    def kernel(self) -> int:
        """Return the memory that the kernel needs for it, in bytes; what sockets hold apart."""
        things = self.descriptors * _DESCRIPTOR + self.mappings * _MAPPING
        waiting = len(self.pipes) * _PIPE + self.terminals * _TERMINAL + self.queued * _QUEUED
        return things + waiting + len(self.sizes) * _FILE

    def _descriptors(self, process: int) -> None:
        folder = f"/proc/{process}/fd"
        for name in os.listdir(folder):  # there may be a million
            with contextlib.suppress(OSError):
                self._descriptor(process, name, f"{folder}/{name}")

    def _descriptor(self, process: int, name: str, path: str) -> None:
        status = os.stat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self.sizes.update(_nameless(status))
        elif kind == stat.S_IFIFO:
            self.pipes.add(status.st_ino)
        elif kind == stat.S_IFCHR:
            self.terminals += status.st_rdev == _PTMX
        elif not kind and os.readlink(path) == _INOTIFY:
            self.queued += _waiting(process, int(name))

    def _mapped(self, folder: Path) -> None:
        with (folder / "maps").open("rb") as file:
            lines = file.readlines()
        self.mappings += len(lines)
        for place, file_id, end in _deleted(lines):
            if as_root():
                with contextlib.suppress(OSError):
                    self.sizes.update(_nameless((folder / "map_files" / place).stat()))
            else:
                self.mapped[file_id] = max(end, self.mapped.get(file_id, 0))


def tables(processes: Iterable[ProcessUsage]) -> int:
    """Return what describes the memory of processes to the processor, in bytes;
    where that is little, it is not looked at.
    """
    wide = [process for process in processes if process.reserved > _MIN_TABLED_BYTES]
    if sum(process.reserved for process in wide) < _MIN_TABLED_BYTES * _TABLE:
        return 0
    return sum(_tables(process.number) for process in wide)


def _tables(process: int) -> int:
    with contextlib.suppress(OSError):
        _, _, rest = Path(f"/proc/{process}/status").read_bytes().partition(b"\nVmPTE:")
        return int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0
    return 0


def _count(process: int) -> int:
    """Return how many descriptors a process has;
    0 where the kernel, before 6.2, does not count them.
    """
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{process}/fd").st_size
    return 0


def _nameless(status: os.stat_result) -> Mapping[tuple[int, int], int]:
    """Return what a file takes, by device and number; nothing where it has a name."""
    if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
        return {(status.st_dev, status.st_ino): status.st_blocks * 512}
    return {}


def _deleted(lines: Iterable[bytes]) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield the mappings of deleted files:
    their place, device and number of the file, and where in it they end.
    """
    for line in lines:
        if not line.endswith(b" (deleted)\n"):
            continue
        words = line.decode(errors="replace").split(maxsplit=5)
        place, _, offset, device, number, name = words
        # Of memory much may be reserved that is never taken:
        # where its pages are not shown, it does not count.
        if name.startswith(_MEMORY) and not as_root():
            continue
        begin, end = (int(bound, 16) for bound in place.split("-"))
        major, minor = (int(half, 16) for half in device.split(":"))
        last = int(offset, 16) + end - begin
        yield place, (os.makedev(major, minor), int(number)), last


def _waiting(process: int, descriptor: int) -> int:
    """Return how many bytes of events can be read from a descriptor of another process.

    Raises ``OSError``.
    """
    there = os.pidfd_open(process)
    try:
        numbers = map(ctypes.c_long, (_SYS_PIDFD_GETFD, there, descriptor, 0))
        here = _libc().syscall(*numbers)
    finally:
        os.close(there)
    if here < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    try:
        if os.readlink(f"/proc/self/fd/{here}") != _INOTIFY:
            return 0  # the number means something else by now
        (size,) = struct.unpack("i", fcntl.ioctl(here, termios.FIONREAD, bytes(4)))
        return int(size)
    finally:
        os.close(here)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
