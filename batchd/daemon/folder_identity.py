"""The identity of a folder: what distinguishes it from another one that was mounted in its place.

Device and inode do not: a file system that is mounted gets the number of one that was unmounted,
and the roots of two disks have the same inode.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from dataclasses import dataclass

_AT_FDCWD = -100
_INO, _BTIME = 0x100, 0x800
#: The mount's number; the second is never given again, where the kernel (6.8) has it.
_MNT_ID, _MNT_ID_UNIQUE = 0x1000, 0x4000
_WANTED = _INO | _BTIME | _MNT_ID | _MNT_ID_UNIQUE
#: ``struct statx``: mask, inode, time of birth, device, mount.
_FIELDS = struct.Struct("=I28xQ40xqI44xIIQ104x")


@dataclass(frozen=True, slots=True)
class FolderIdentity:
    """What the system knows a folder by."""

    #: The mount through which it is seen; 0: the kernel does not say.
    mount: int
    device: tuple[int, int]
    inode: int
    #: When it was made (seconds, nanoseconds); None: the file system does not know.
    born: tuple[int, int] | None

    @classmethod
    def of(cls, path: str) -> FolderIdentity:
        """Return that of the folder at a path. Blocks. Raises ``OSError``."""
        buffer = ctypes.create_string_buffer(_FIELDS.size)
        if _libc().statx(_AT_FDCWD, os.fsencode(path), 0, _WANTED, buffer):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        mask, inode, born_s, born_ns, major, minor, mount = _FIELDS.unpack(buffer.raw)
        born = (born_s, born_ns) if mask & _BTIME else None
        known = mask & (_MNT_ID | _MNT_ID_UNIQUE)
        return cls(mount if known else 0, (major, minor), inode, born)

    def exchanged(self, now: FolderIdentity) -> bool:
        """Return whether another disk, or another part of it, is mounted where this folder was.

        A disk that is mounted again is none, whatever its number is then; nor is a folder that
        is made again in its place.
        """
        if self.device != now.device and self.inode != now.inode:
            return True
        moved = (self.mount, self.device) != (now.mount, now.device)
        return moved and None not in (self.born, now.born) and self.born != now.born

    def beside(self, other: FolderIdentity) -> bool:
        """Return whether both are seen through one mount."""
        return (self.mount, self.device) == (other.mount, other.device)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
