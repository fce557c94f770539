"""Whose an outbox is: the mark in it, and the list of marks in the state directory."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from batchd.spool.outbox import SPOOL, OwnOutboxes, StrangeOutboxError


def test_what_was_marked_below_a_disk_is_not_taken_for_it(tmp_path: Path) -> None:
    """A mount point that got a mark before its disk came is strange once the disk has gone again;
    a line lets it be used, and then the disk is the strange one.
    """
    outbox, disk = tmp_path / "outbox", tmp_path / "disk"
    below = tmp_path / "below"
    own = OwnOutboxes(tmp_path, 0xABC)
    own.insist(str(outbox))
    disk.mkdir()
    outbox.rename(below)
    disk.rename(outbox)
    with pytest.raises(StrangeOutboxError, match="is missing there") as caught:
        own.insist(str(outbox))
    assert f"touch {shlex.quote(str(outbox / SPOOL))}" in caught.value.fix
    (outbox / SPOOL).touch()
    own.insist(str(outbox))
    outbox.rename(disk)
    below.rename(outbox)
    for known in (own, OwnOutboxes(tmp_path, 0xABC)):
        with pytest.raises(StrangeOutboxError, match="is an older one") as caught:
            known.insist(str(outbox))
    assert f"truncate -s0 {shlex.quote(str(outbox / SPOOL))}" in caught.value.fix
    (outbox / SPOOL).write_bytes(b"")
    own.insist(str(outbox))
    with pytest.raises(StrangeOutboxError, match="another state directory"):
        OwnOutboxes(tmp_path / "other", 0xDEF).insist(str(outbox))


def test_a_state_directory_without_its_list_knows_its_mark(tmp_path: Path) -> None:
    """It was restored, say: an outbox with its mark is its own."""
    own = OwnOutboxes(tmp_path, 0xABC)
    own.insist(str(tmp_path / "outbox"))
    (tmp_path / "outboxes").unlink()
    OwnOutboxes(tmp_path, 0xABC).insist(str(tmp_path / "outbox"))
