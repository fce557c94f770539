"""Free room: what a disk has too little of, and what the user can do."""

from __future__ import annotations

import errno

import pytest

from batchd.errors import SandboxError
from batchd.free_room import INBOX, OUTBOX, STATE, FreeRoom, MissingRoom, NeededRoom, refused

_MB = 10**6


@pytest.mark.parametrize(
    ("free", "needed", "missing"),
    [
        (FreeRoom(5 * _MB, 16, 10 * _MB, 100), OUTBOX, None),
        (FreeRoom(None, None, 0, 0), OUTBOX, None),
        (
            FreeRoom(_MB, 16, 10 * _MB, 100),
            OUTBOX,
            MissingRoom("1.0 MB free on its disk, 4.2 MB needed", "make room on that disk"),
        ),
        (
            FreeRoom(5 * _MB, 15, 10 * _MB, 100),
            INBOX,
            MissingRoom(
                "15 more files (inodes) fit on its disk, 16 needed", "delete files on that disk"
            ),
        ),
        (
            FreeRoom(_MB, None, _MB, 0),
            OUTBOX,
            MissingRoom(
                "its disk is too small: 1.0 MB in all, 4.2 MB needed",
                "set [paths] outbox to a folder on a larger disk",
            ),
        ),
        (
            FreeRoom(5 * _MB, 9, 10 * _MB, 10),
            STATE,
            MissingRoom(
                "its disk is too small: 10 files (inodes) in all, 16 needed",
                "set [paths] state to a folder on a larger disk",
            ),
        ),
    ],
)
def test_what_a_disk_lacks_comes_with_what_the_user_can_do(
    free: FreeRoom, needed: NeededRoom, missing: MissingRoom | None
) -> None:
    """Bytes, inodes, a disk that can never have either; one that counts nothing lacks nothing."""
    assert free.missing(needed) == missing


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("fatal: cannot store pack file: No space left on device", errno.ENOSPC),
        ("fatal: sha1 file '/t/index.lock' write error. Out of diskspace", errno.ENOSPC),
        ("warning: x\nerror: unable to write file a/b.c\nfatal: it", errno.ENOSPC),
        ("error: failed to write new configuration file /tmp/x/config.lock", errno.ENOSPC),
        ("fatal: Could not write new index file.", errno.ENOSPC),
        ("fatal: unknown write failure on standard output", errno.ENOSPC),
        ("sh: 12: printf: I/O error", errno.ENOSPC),
        ("cp: error writing 'a': Disk quota exceeded", errno.EDQUOT),
        ("cp: error reading 'a': Input/output error", errno.EIO),
        ("mkdir: cannot create directory 'a': Read-only file system", errno.EROFS),
        ("tar: -: Wrote only 8704 of 10240 bytes", errno.ENOSPC),
        (SandboxError("a command could not be run: it"), 0),
        ("remote: fatal: write error: No space left on device", 0),
        ("fatal: couldn't find remote ref main", 0),
        ("error: invalid path 'No space left on device'", 0),
        ('error: open("a"): Permission denied', 0),
    ],
)
def test_what_the_machines_own_disk_refuses_is_known_by_number_and_by_words(
    said: str | SandboxError, number: int
) -> None:
    """As git, sh, cp and tar say it, with the reason or without; a server's disk is another's."""
    assert refused(said) == number
    caused = SandboxError("it cannot be done")
    caused.__cause__ = OSError(number, "said otherwise")
    assert refused(caused) == number
