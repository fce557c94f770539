"""The disks that outboxes lie on: which changes of a folder are a change of its disk."""

from __future__ import annotations

import shutil
import subprocess
import time
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


def test_another_disk_with_the_same_numbers_is_another_disk(tmp_path: Path) -> None:
    """What is mounted after it has the same inode, and mostly its device number:
    it is seen all the same.
    """
    disk = tmp_path / "disk"
    outbox, homes = disk / "outbox", OutboxHomes()
    with mounted(disk):
        outbox.mkdir()
        inode = outbox.stat().st_ino
        homes.insist(str(outbox))
    disk.rmdir()
    time.sleep(0.05)  # the kernel notes births by its clock's ticks
    with mounted(disk):
        outbox.mkdir()
        assert outbox.stat().st_ino == inode
        with pytest.raises(ChangedDiskError):
            homes.insist(str(outbox))


def test_a_part_of_a_disk_that_is_mounted_elsewhere_comes_and_goes(tmp_path: Path) -> None:
    """All is on one disk: what lies below a bind mount that is taken away is another folder;
    mounted again, it is the same, also where it was deleted and made again meanwhile.
    """
    far, outbox, homes = tmp_path / "far", tmp_path / "outbox", OutboxHomes()
    (far / "below").mkdir(parents=True)
    time.sleep(0.05)  # the kernel notes births by its clock's ticks
    outbox.mkdir()
    bind = ["mount", "--bind", str(far), str(outbox)]
    if subprocess.run(bind, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    try:
        for folder in (outbox, outbox / "below"):
            homes.insist(str(folder))
        subprocess.run(["umount", str(outbox)], check=True)
        for folder in (outbox, outbox / "below"):
            with pytest.raises(ChangedDiskError):
                homes.insist(str(folder))
        subprocess.run(bind, check=True)
        for folder in (outbox, outbox / "below"):
            homes.insist(str(folder))
        (outbox / "below").rmdir()
        homes.insist(str(outbox / "below"))
        (outbox / "below").mkdir()
        homes.insist(str(outbox / "below"))
    finally:
        subprocess.run(["umount", "--lazy", str(outbox)], check=False)


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
