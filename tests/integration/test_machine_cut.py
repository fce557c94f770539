"""A machine whose disk goes down at once, without a flush: what events name is there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import command, processes_there, spool_with, strike
from patience import until
from pools import drop, nodes

from batchd.events import ToolRan
from batchd.records import Ref
from batchd.store import lookups
from batchd.store.queries import StoreReader

#: See ioctl(2) and ext4's fs/ext4/ext4.h: shut down, and write nothing that is not written yet.
_FS_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop0").exists(),
        reason="makes a disk of its own",
    ),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB that may be shut down; what is not written is then lost."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    place.mkdir()
    # Nothing is written by itself for as long as this test lasts.
    options = "loop,commit=300"
    subprocess.run(["mount", "-o", options, image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def _cut(disk: Path) -> None:
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def test_what_an_event_says_is_on_the_disk_of_a_machine_that_is_cut_off(
    tmp_path: Path, slow_server: str, disk: Path
) -> None:
    """Each note that a durable event tells of has its line in the file."""
    spool = spool_with(
        tmp_path, slow_server, model="notes-40", commands=[("node7", command(tmp_path, "node7"))]
    )
    config = tmp_path / "config.toml"
    config.write_text(f'{config.read_text()}[paths]\noutbox = "{disk}/outbox"\n')
    (disk / "outbox").mkdir()
    ref = Ref("b", "001")
    with contextlib.suppress(Exception), spool.serving() as daemon:
        spool.eventually(lambda: "node7" in nodes(spool))
        drop(spool, 1)
        end = time.monotonic() + 60
        while len(_ran(spool.folder, ref)) < 8 and time.monotonic() < end:
            time.sleep(0.05)
        _cut(disk)
        daemon.kill()
    strike(processes_there(spool))
    said = len(_ran(spool.folder, ref))
    device = disk.stat().st_dev
    subprocess.run(["umount", "-l", disk], check=True)
    # A sandbox that still dies sees it: it would be mounted as it is, shut down.
    until(lambda: not _seen(device), lambda: "a process sees the disk")
    subprocess.run(["mount", "-o", "loop", tmp_path / "image", disk], check=True)
    lines = (disk / "outbox/b/001/notes.txt").read_text().split()
    assert said >= 8
    assert len(lines) >= said


def _seen(device: int) -> bool:
    mark = f" {os.major(device)}:{os.minor(device)} "
    for each in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            if mark in each.read_text():
                return True
    return False


def _ran(folder: Path, ref: Ref) -> list[ToolRan]:
    with contextlib.suppress(Exception), StoreReader(folder / ".batchd/batchd.db") as reader:
        return [each for each in reader.read(lookups.events, ref) if isinstance(each, ToolRan)]
    return []
