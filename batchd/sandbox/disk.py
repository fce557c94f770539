"""What a task puts on the disk: what its directory grows by, and its /tmp."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence

from batchd import trees
from batchd.records import SandboxPolicy
from batchd.sandbox.folders import Folders
from batchd.sandbox.processes import Process, nameless
from batchd.sandbox.quantities import amount

#: The longest that one look may take (seconds); where it is not enough, what was seen by then counts.
_LOOK_S = 5.0
#: A pause is so many times as long as the look before it, within bounds (seconds).
_REST, _PAUSE_S, _LONGEST_PAUSE_S = 20, 1.0, 60.0


class Disk:
    """What one task has put on the disk, measured now and then.

    Of a directory that was there before, only what it grows by counts, from the first command on.
    """

    def __init__(
        self,
        folders: Folders,
        policy: SandboxPolicy,
        *,
        base: int | None,
        over: str = "",
    ) -> None:
        """``base``: what the directory held at first, in bytes; None: that is to be measured."""
        self._folders = folders
        self._policy = policy
        self._base = base
        self._due = time.monotonic() + (0.0 if base is None else _PAUSE_S)
        self._looking = False
        #: Which limit is passed, and by what; empty: none.
        self.over = over

    def apart(self, folders: Folders) -> Disk:
        """Return what measures the same directory with another /tmp."""
        return Disk(folders, self._policy, base=self._base, over=self.over)

    @property
    def due(self) -> bool:
        """Whether it is time for another look."""
        return not self._looking and time.monotonic() >= self._due

    async def look(self, processes: Sequence[Process] = ()) -> str:
        """Measure, and return which limit is passed; ``processes``: may hold files that have no name any more."""
        if self._folders.task < 0:
            return self.over
        folders = self._folders.copy()
        self._looking = True
        began = time.monotonic()
        try:
            work, tmp, kept = await asyncio.to_thread(_measured, folders, processes)
        finally:
            self._looking = False
            now = time.monotonic()
            self._due = now + max(_PAUSE_S, min(_REST * (now - began), _LONGEST_PAUSE_S))
        if self._base is None:
            self._base = work
        self.over = self._excess(max(0, work - self._base), tmp, kept)
        return self.over

    def _excess(self, grown: int, tmp: int, kept: int) -> str:
        policy, used = self._policy, grown + tmp + kept
        if tmp > policy.tmp_bytes:
            return f"its /tmp holds {amount(tmp)}; [sandbox] tmp_bytes allows {amount(policy.tmp_bytes)}"
        if used > policy.max_disk_bytes:
            return (
                f"the task has put {amount(used)} on the disk, in its directory and /tmp;"
                f" [sandbox] max_disk_bytes allows {amount(policy.max_disk_bytes)}"
            )
        return ""


def _measured(folders: Folders, processes: Sequence[Process]) -> tuple[int, int, int]:
    """Return what the directory, the /tmp and one that is kept aside take, in bytes. Closes ``folders``."""
    try:
        devices = [os.fstat(descriptor).st_dev for descriptor in folders]
        work, tmp, kept = (
            0 if folder is None else trees.size(folder, _LOOK_S)[0]
            for folder in (folders.task, folders.tmp, folders.kept)
        )
        hidden: Mapping[int, int] = nameless(processes, devices) if processes else {}
        return work + sum(hidden.values()), tmp, kept
    finally:
        folders.close()
