"""Hints of what happens in a folder:
taken by the watcher's thread, handed on to one who looks for itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from batchd.spool.folder_watch import FileSign, FolderWatcher
from batchd.spool.settle import ignorable

#: More hints than these are no use: a look at the whole folder finds it all.
_MAX_HINTS = 4096
#: After so many events the kernel's queue may have run over, so that some were lost.
_BURST = 1000


class Hints:
    """The hints of one open folder, from ``watch`` to ``stop``.

    What it holds is shared with the watcher's thread.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        """``ring`` is called in the watcher's thread where there are hints again."""
        self._ring = ring
        self._watcher: FolderWatcher | None = None
        #: The folder that is watched, as the kernel knows it.
        self.watched: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._hints: dict[str, FileSign] = {}
        self._events = 0
        self._rung = False

    def watch(self, folder: int) -> bool:
        """Watch an open folder; return whether another one was watched before.

        Raises ``OSError`` where the kernel reports no events of it.
        """
        status = os.fstat(folder)
        if self.watched == (status.st_dev, status.st_ino):
            return False
        other = self._watcher is not None
        self.stop()
        # The kernel reports nothing of a link to a folder,
        # and nothing when it comes to lead elsewhere.
        self._watcher = FolderWatcher(Path(f"/proc/self/fd/{folder}").resolve(), self._notice)
        self.watched = status.st_dev, status.st_ino
        return other

    def stop(self) -> None:
        """Watch no folder."""
        if self._watcher:
            self._watcher.stop()
        self._watcher = self.watched = None

    def take(self) -> tuple[dict[str, FileSign], bool]:
        """Return the hints, and whether events may have been lost."""
        with self._lock:
            hints, self._hints = self._hints, {}
            self._rung = False
            burst = self._events >= _BURST
            if burst:
                self._events = 0
        return hints, burst

    def _notice(self, sign: FileSign, name: str) -> None:
        with self._lock:
            self._events += 1
            if sign is FileSign.GONE:
                # A folder made in its place may well have the same inode.
                self.watched = None
                self._events = _BURST
            elif name in self._hints or len(self._hints) < _MAX_HINTS:
                if not ignorable(name):
                    # One that is begun is not what had its name before.
                    begun = sign is FileSign.CREATED
                    self._hints[name] = sign if begun else max(sign, self._hints.get(name, sign))
            else:
                self._events = _BURST  # it is dropped: a scan is to find it
            ring, self._rung = not self._rung, True
        if ring:
            self._ring()
