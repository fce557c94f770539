"""Free room on the disks of a spool: how much each folder needs, and how much there is."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

#: What an outbox must have free for a task to start (bytes):
#: its transcript and result, with those of others that run.
OUTBOX_BYTES = 4 << 20
#: What a state directory must have free for an order to be carried out (bytes).
STATE_BYTES = 1 << 20
#: What an inbox must have free for a task file of the usual size (bytes).
INBOX_BYTES = 1 << 20
_GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The room that this process may still use on a disk."""

    #: Bytes. None: the file system counts none, and a write alone shows it.
    size: int | None
    #: Files that can still be made. None: the file system counts none.
    files: int | None

    def lack(self, needed: int) -> str:
        """Return what is missing where ``needed`` bytes must be free, in words;
        empty: nothing.
        """
        if self.files is not None and self.files <= 0:
            return "its disk can hold no more files: no inode is free"
        if self.size is not None and self.size < needed:
            return f"{shown(self.size)} free on its disk, {shown(needed)} needed"
        return ""


def found(folder: str) -> FreeRoom:
    """Return the room on the disk of a folder. Raises ``OSError``."""
    disk, root = os.statvfs(folder), os.geteuid() == 0
    blocks, names = (disk.f_bfree, disk.f_ffree) if root else (disk.f_bavail, disk.f_favail)
    return FreeRoom(
        size=blocks * disk.f_frsize if disk.f_blocks else None,
        files=names if disk.f_files else None,
    )


def insist(folder: str, needed: int) -> None:
    """Return if the disk of a folder has so much room (bytes).

    Raises ``OSError`` where it has not, with what there is, and where it cannot be looked at.
    """
    if lack := found(folder).lack(needed):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {lack}", folder)


def shown(size: int) -> str:
    """Return bytes as people read them: ``4.2 MB``, ``50.3 GB``."""
    return f"{size / 1e9:,.1f} GB" if size >= _GIGABYTE else f"{size / 1e6:.1f} MB"
