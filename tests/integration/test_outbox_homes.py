"""The disks that outboxes lie on: which changes of a folder are a change of its disk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from weather import mounted

from batchd.daemon.outbox_homes import ChangedDiskError, OutboxHomes


def test_an_outbox_below_a_disk_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Missing or made by somebody, it is not where it was, until batchd is reloaded."""
    disk = tmp_path / "disk"
    outbox, homes = disk / "outbox", OutboxHomes()
    with mounted(disk):
        outbox.mkdir()
        homes.insist(str(outbox))
        subprocess.run(["umount", str(disk)], check=True)
        with pytest.raises(ChangedDiskError):
            homes.insist(str(outbox))
        (disk / "between").mkdir()
        outbox.mkdir()
        with pytest.raises(ChangedDiskError, match="another disk than before"):
            homes.insist(str(outbox))
        homes.forget()
        homes.insist(str(outbox))


def test_an_outbox_that_is_made_again_is_on_its_disk(tmp_path: Path) -> None:
    """Deleted and made again, or not yet made, or no folder: that is for the work there."""
    outbox, homes = tmp_path / "outbox", OutboxHomes()
    homes.insist(str(outbox))
    for _ in range(2):
        outbox.mkdir()
        homes.insist(str(outbox))
        shutil.rmtree(outbox)
        homes.insist(str(outbox))
    outbox.write_text("")
    homes.insist(str(outbox))
    homes.insist(str(outbox / "below"))
