"""The watch of a folder by inotify. It only hints: the listener looks for itself."""

from __future__ import annotations

import enum
import os
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


class _Handler(FileSystemEventHandler):
    """Passes signs on. It must not raise: that would kill watchdog's thread in silence."""

    def __init__(self, notify: Callable[[FileSign, str], None]) -> None:
        self._notify = notify

    def dispatch(self, event: FileSystemEvent) -> None:
        sign = _SIGNS.get(type(event))
        if sign is not None:
            path = os.fsdecode(event.dest_path or event.src_path)
            self._notify(sign, os.path.basename(path))  # runs for every event


class FolderWatcher:
    """The watcher of one folder from its making until ``stop``."""

    def __init__(self, folder: Path, notify: Callable[[FileSign, str], None]) -> None:
        """Begin. ``notify`` is called in another thread, and must not raise.

        Raises ``OSError`` where the folder cannot be watched.
        """
        self._observer = _Observer()
        self._observer.start()
        try:
            self._observer.schedule(_Handler(notify), str(folder))
        except OSError:
            self.stop()
            raise

    def stop(self) -> None:
        """End watching; returns when its threads are gone."""
        self._observer.stop()
        self._observer.join()
