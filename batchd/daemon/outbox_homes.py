"""The disks that outboxes lie on: what is written below the place of a disk that was unmounted
is hidden once that disk is back.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from batchd.daemon.folder_identity import FolderIdentity

_WHY = "it is on another disk than before: one was unmounted there, or mounted"


class ChangedDiskError(OSError):
    """An outbox lies on another disk than when it was first seen."""

    def __init__(self, folder: str) -> None:
        # Workers try again what fails with this number.
        super().__init__(errno.EIO, _WHY, folder)
        #: What the user can do.
        self.fix = "mount its disk again, or restart or reload batchd to use what is there now"


@dataclass(slots=True, eq=False)
class OutboxHomes:
    """What was first seen of each outbox. For any thread, as far as none asks for the same one."""

    _seen: dict[str, FolderIdentity] = field(default_factory=dict)

    def insist(self, folder: str) -> None:
        """Return if an outbox is where it was. Blocks.

        Raises ``ChangedDiskError`` where it is not; what else is wrong is left to the work there.
        """
        before = self._seen.get(folder)
        try:
            now = FolderIdentity.of(folder)
        except FileNotFoundError:
            # It is made again where somebody deleted it, and not where its disk is gone.
            if before and not before.beside(_nearest(Path(folder))):
                raise ChangedDiskError(folder) from None
            return
        except OSError:
            return
        if before and before.exchanged(now):
            raise ChangedDiskError(folder)
        self._seen[folder] = now

    def forget(self) -> None:
        """Take the outboxes as they are when they are seen next."""
        self._seen.clear()


def _nearest(folder: Path) -> FolderIdentity:
    """Return the identity of the nearest folder above that exists."""
    return FolderIdentity.of(str(next(parent for parent in folder.parents if parent.exists())))
