"""Free room on the disks of a spool: how much each folder needs, how much there is,
and what the user can do.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

#: The fix where a disk is mounted read-only.
MOUNT_WRITABLE = "mount that disk writable again"
#: The fix where a folder's mode, or its owner, keeps batchd out.
ALLOW_WRITING = "let the user that batchd runs as write there"
_GIGABYTE = 10**9
#: What a disk, or a quota, answers that takes nothing for a while.
_REFUSALS = {os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)}
#: The same in the words of programs, for `grep -E` too: git, sh and tar may leave out why.
WORDS = f"{'|'.join(_REFUSALS)}|I/O error|(unable to|failed to|[Cc]ould not) write (file|new)|unknown write failure|Wrote only|sha1 file .* write error[.] Out of diskspace"
#: What a server says of its own disk is not of this machine's, nor what a file is called.
_SAID = re.compile(rf"^(?!remote:)(?:.*?[:\]] )?({WORDS})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NeededRoom:
    """The room that the disk of a folder must have free for work to begin that writes there."""

    #: Bytes.
    size: int
    #: What names the folder, in words that follow "set".
    setting: str
    #: Files that can still be made.
    files: int = 16


#: For a task to start: its transcript and result, with those of others that run.
OUTBOX = NeededRoom(4 << 20, "[paths] outbox")
#: For an order to be carried out.
STATE = NeededRoom(1 << 20, "[paths] state")
#: For tasks to end: what their patches are made in, and the store.
ENDS = NeededRoom(8 << 20, "[paths] state")
#: For a repository, or the copy of a directory.
MIRRORS = NeededRoom(8 << 20, "[workspace] mirrors")
#: For a task file of the usual size.
INBOX = NeededRoom(1 << 20, "[paths] inbox")


@dataclass(frozen=True, slots=True)
class MissingRoom:
    """What a disk has too little of, and what a user can do, in words."""

    #: What there is, and what is needed.
    why: str
    fix: str


class NoRoomError(OSError):
    """A disk has less room than is needed, which says what the user can do."""

    def __init__(self, missing: MissingRoom, folder: str) -> None:
        super().__init__(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {missing.why}", folder)
        #: What the user can do.
        self.fix = missing.fix


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The room that this process may still use on a disk."""

    #: Bytes. None: the file system counts none, and a write alone shows it.
    size: int | None
    #: Files that can still be made. None: the file system counts none.
    files: int | None
    #: Bytes that the disk has in all, used ones included.
    whole_size: int
    #: Files that it can hold in all.
    whole_files: int

    def missing(self, needed: NeededRoom) -> MissingRoom | None:
        """Return what is missing where so much must be free; None: nothing."""
        larger = f"set {needed.setting} to a folder on a larger disk"
        if self.size is not None and self.size < needed.size:
            need = f"{shown(needed.size)} needed"
            if self.whole_size < needed.size:
                small = f"its disk is too small: {shown(self.whole_size)} in all"
                return MissingRoom(f"{small}, {need}", larger)
            free = f"{shown(self.size)} free on its disk"
            return MissingRoom(f"{free}, {need}", "make room on that disk")
        if self.files is not None and self.files < needed.files:
            need = f"{needed.files} needed"
            if self.whole_files < needed.files:
                small = f"its disk is too small: {self.whole_files} files (inodes) in all"
                return MissingRoom(f"{small}, {need}", larger)
            free = f"{self.files} more files (inodes) fit on its disk"
            return MissingRoom(f"{free}, {need}", "delete files on that disk")
        return None


def found(folder: str) -> FreeRoom:
    """Return the room on the disk of a folder. Raises ``OSError``."""
    disk, root = os.statvfs(folder), os.geteuid() == 0
    blocks, names = (disk.f_bfree, disk.f_ffree) if root else (disk.f_bavail, disk.f_favail)
    return FreeRoom(
        size=blocks * disk.f_frsize if disk.f_blocks else None,
        files=names if disk.f_files else None,
        whole_size=disk.f_blocks * disk.f_frsize,
        whole_files=disk.f_files,
    )


def read_only(folder: str) -> bool:
    """Whether the disk of a folder is mounted read-only. Raises ``OSError``."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def insist(folder: str, needed: NeededRoom) -> None:
    """Return if the disk of a folder may be written and has so much room.

    Raises ``NoRoomError`` where it has not, with what there is,
    and ``OSError`` where it is read-only, or cannot be looked at.
    """
    if read_only(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), folder)
    if missing := found(folder).missing(needed):
        raise NoRoomError(missing, folder)


def refused(error: BaseException | str | None) -> int:
    """Return by what the machine's own disk has caused an error, or what a program said,
    which is never a task's doing; 0: it has not.
    """
    said = str(error)
    while isinstance(error, BaseException):
        if isinstance(error, OSError) and error.errno in _REFUSALS.values():
            return error.errno or 0
        error = error.__cause__
    found = _SAID.search(said)
    return _REFUSALS.get(found[1], errno.ENOSPC) if found else 0


def refusal(said: str, needs: Mapping[str, NeededRoom]) -> OSError:
    """Return as an error that a program was refused room, which said so itself;
    it names the first folder that lacks what it needs, or the fullest, and what is free. Blocks.
    """
    number, free = refused(said), dict[str, int]()
    for folder, needed in needs.items():
        try:
            insist(folder, needed)
            free[folder] = found(folder).size or 0
        except OSError as error:  # another one is for who works there
            if error.errno == number:
                error.strerror = f"{error.strerror}; {said}"
                return error
    if not free or number == errno.EIO:
        return OSError(number, said)
    folder = min(free, key=free.__getitem__)
    return OSError(number, f"{shown(free[folder])} free on its disk; {said}", folder)


def shown(size: int) -> str:
    """Return bytes as people read them: ``4.2 MB``, ``50.3 GB``."""
    return f"{size / 1e9:,.1f} GB" if size >= _GIGABYTE else f"{size / 1e6:.1f} MB"
