"""The watch of a folder by inotify. It only hints, in its own thread: who takes the hints looks
for itself.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirDeletedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyConstants, InotifyFD, Mask

from batchd.spool.claims import ignorable

#: More hints than these are no use: a look at the whole folder finds it all.
_MAX_HINTS = 4096
#: After so many events the kernel's queue may have run over, so that some were lost.
_BURST = 1000


class FileSign(enum.IntEnum):
    """A sign: what an event says of a file; a greater one says more."""

    #: It is there: just begun, or a link.
    CREATED = 1
    #: A writer closed it.
    CLOSED = 2
    #: It was moved here, so it is whole.
    MOVED = 3
    #: The folder itself is gone.
    GONE = 4


_SIGNS: dict[type[FileSystemEvent], FileSign] = {
    FileCreatedEvent: FileSign.CREATED,
    FileClosedEvent: FileSign.CLOSED,
    FileMovedEvent: FileSign.MOVED,
    DirDeletedEvent: FileSign.GONE,
}


class _Emitter(InotifyFullEmitter):
    """Asks the kernel for what can make a file ready, and not for IN_MOVED_FROM.

    Each claim moves a file out. watchdog would hold that event, and all behind it, for half a
    second to pair it with an IN_MOVED_TO; and a burst of claims would help to overflow the queue.
    """

    def get_event_mask_from_filter(self) -> Mask:
        return Mask(
            InotifyConstants.IN_CREATE
            | InotifyConstants.IN_CLOSE_WRITE
            | InotifyConstants.IN_MOVED_TO
            | InotifyConstants.IN_DELETE_SELF
            | InotifyConstants.IN_ONLYDIR
        )


class _Observer(BaseObserver):
    """watchdog's InotifyObserver, with our emitter."""

    def __init__(self) -> None:
        self._source = InotifyFD()
        self._source.start()
        super().__init__(_Emitter, inotify_fd=self._source)

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._source.stop()
        self._source.join()


class Hints(FileSystemEventHandler):
    """The hints of one open folder, from ``watch`` to ``stop``.

    What it holds is shared with the watcher's thread.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        """``ring`` is called in the watcher's thread where there are hints again."""
        self._ring = ring
        self._observer: _Observer | None = None
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
        other = self._observer is not None
        self.stop()
        observer = self._observer = _Observer()
        observer.start()
        # The kernel reports nothing of a link to a folder,
        # and nothing when it comes to lead elsewhere.
        try:
            observer.schedule(self, str(Path(f"/proc/self/fd/{folder}").resolve()))
        except OSError:
            self.stop()
            raise
        self.watched = status.st_dev, status.st_ino
        return other

    def stop(self) -> None:
        """Watch no folder."""
        if self._observer:
            self._observer.stop()
            self._observer.join()
        self._observer = self.watched = None

    def take(self) -> tuple[dict[str, FileSign], bool]:
        """Return the hints, and whether events may have been lost."""
        with self._lock:
            hints, self._hints = self._hints, {}
            self._rung = False
            burst = self._events >= _BURST
            if burst:
                self._events = 0
        return hints, burst

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take a sign: in watchdog's thread, which an error would kill in silence."""
        sign = _SIGNS.get(type(event))
        if sign is None:
            return
        name = os.path.basename(os.fsdecode(event.dest_path or event.src_path))
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
