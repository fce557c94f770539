"""The messages that wait, on disk: a file each, so that they outlive the daemon.

``STATE/notify/RECEIVER/ID.json`` appears whole and durable, mode 0600, and goes when its message
has reached the receiver, or is given up.
Where the disk takes nothing, messages wait in memory alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.notify.format import NotificationV1
from batchd.spool import files

_FOLDER = "notify"
#: How the name of a message ends that is being tried.
_TRIED = ".tried.json"


class PendingMessages:
    """The folder of one receiver."""

    def __init__(self, state: Path, name: str) -> None:
        self._folder = state / _FOLDER / name

    def load(self) -> tuple[NotificationV1 | None, list[NotificationV1]]:
        """Return what the last daemon left: what it was trying, and the rest, oldest first.

        What is none is removed.
        """
        tried, rest = None, []
        with contextlib.suppress(OSError):
            files.sweep(self._folder)
            for path in sorted(self._folder.glob("[!.]*.json")):
                try:
                    message = decoders.decode(path.read_bytes(), NotificationV1)
                except msgspec.DecodeError:
                    path.unlink()
                    continue
                if path.name.endswith(_TRIED) and tried is None:
                    tried = message
                else:
                    rest.append(message)
        return tried, rest

    def count(self) -> int:
        """Return how many wait."""
        return sum(1 for _ in self._folder.glob("[!.]*.json"))

    def keep(self, message: NotificationV1) -> None:
        """Write a message down. Raises ``OSError``."""
        files.make_folder(self._folder, 0o700)
        data = msgspec.json.encode(message)
        files.write_whole(self._path(message), lambda f: f.write(data), replace=True, mode=0o600)

    def try_(self, message: NotificationV1) -> None:
        """Note that a message is tried from now on, and may have arrived."""
        with contextlib.suppress(OSError):
            self._path(message).rename(self._path(message, _TRIED))

    def drop(self, messages: Collection[NotificationV1]) -> None:
        """Forget messages."""
        for message in messages:
            with contextlib.suppress(OSError):
                self._path(message).unlink(missing_ok=True)
                self._path(message, _TRIED).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all messages."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob("[!.]*.json"):
                path.unlink()

    def _path(self, message: NotificationV1, ending: str = ".json") -> Path:
        return self._folder / f"{message.id}{ending}"


def forget_others(state: Path, names: Collection[str]) -> dict[str, int]:
    """Remove what waits for receivers that are not there any more;
    return how many messages that were, by name.
    """
    gone = {}
    with contextlib.suppress(OSError):
        for folder in sorted((state / _FOLDER).iterdir()):
            if folder.name not in names:
                gone[folder.name] = PendingMessages(state, folder.name).count()
                shutil.rmtree(folder, ignore_errors=True)
    return gone
