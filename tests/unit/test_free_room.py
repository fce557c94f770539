"""Free room: what a disk has too little of, and what the user can do."""

from __future__ import annotations

import pytest

from batchd.free_room import INBOX, OUTBOX, STATE, FreeRoom, MissingRoom, NeededRoom

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
