"""Small disks that fill up and turn read-only; mounting them takes root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_ROOMY = "2g"
_PAGE = 4096


class Disk:
    """A disk of memory on a folder."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        self._mark = mark

    def mount(self) -> None:
        """Mount it, with room enough."""
        self.folder.mkdir()
        options = f"size={_ROOMY},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, self._mark, self.folder], check=True)

    def unmount(self) -> None:
        """Unmount it, also where it is in use."""
        subprocess.run(["umount", "-l", self.folder], check=True)

    def fill(self) -> bool:
        """Leave it no room; whether it could be done."""
        room = os.statvfs(self.folder)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        return self._remount(f"size={max(used, _PAGE)}")

    def seal(self) -> bool:
        """Make it read-only; it cannot be done while a file on it is open for writing."""
        return self._remount("ro")

    def heal(self) -> None:
        """Give its room back, and make it writable."""
        if not self._remount(f"rw,size={_ROOMY}"):
            raise OSError(f"{self.folder} cannot be mounted writable again")

    def _remount(self, options: str) -> bool:
        command = ["mount", "-o", f"remount,{options}", self.folder]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def disks(folder: Path, mark: str, *names: str) -> Iterator[dict[str, Disk]]:
    """Give a disk for each name, below a folder; none where this user may not mount."""
    made: dict[str, Disk] = {}
    try:
        for name in names if os.geteuid() == 0 else ():
            made[name] = Disk(folder / name, mark)
            made[name].mount()
        yield made
    finally:
        for disk in made.values():
            disk.unmount()
