"""Disk usage of a task: what its directory grows by, and its /tmp."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from batchd import trees
from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.process_table import OpenFiles, ProcessUsage
from batchd.sandbox.resource_shortage import patiently
from batchd.words import amount

#: The longest that one look may take (seconds of a processor);
#: where it is not enough, what was seen by then counts.
_LOOK_S = 5.0
#: A pause is so many times as long as the look before it, within bounds (seconds).
_REST, _PAUSE_S, _LONGEST_PAUSE_S = 20, 1.0, 60.0


@dataclass(eq=False, repr=False)
class DiskUsage:
    """The disk usage of one task, measured now and then.

    Of a directory that was there before, only what it grows by counts,
    from before the first command on.
    """

    _folders: TaskFolders
    policy: SandboxPolicy
    _: KW_ONLY
    #: What the directory held at first, in bytes; None: that is to be measured.
    base: int | None
    #: Whether it held no more.
    certain: bool = True
    #: Which limit is passed, and by what; empty: none.
    over: str = ""
    #: What its task has on the disk by the last look (bytes).
    used: int = field(default=0, init=False)
    _looking: bool = field(default=False, init=False)
    #: How often it began: a look from before that counts no more.
    _begun: int = field(default=0, init=False)
    #: Whether there was a command: without one, nothing lies in a new directory.
    _used: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._due = time.monotonic() + (0.0 if self.base is None else _PAUSE_S)

    def apart(self, folders: TaskFolders) -> DiskUsage:
        """Return what measures the same directory with another /tmp."""
        self._used = True
        return DiskUsage(folders, self.policy, base=self.base, certain=self.certain, over=self.over)

    def begin(self) -> None:
        """Take what the directory holds at the next look as what it held at first."""
        self.base, self.certain, self.over = None, True, ""
        self._begun += 1

    async def before(self) -> int | None:
        """Return what the directory held at first, in bytes;
        None where that was too much to be measured.

        The first look finds it, so it must come before the first command. Raises ``SandboxError``.
        """
        if self.base is None:
            await self._surely()
        return self.base if self.certain else None

    async def full(self) -> str:
        """Return, before a command, which limit is passed, and by what;
        one that was passed is measured again.

        Raises ``SandboxError``.
        """
        self._used = True
        await self.before()
        return await self._surely() if self.over else ""

    async def after(self, full: str) -> str:
        """Return what there is to say of the room after a command that could write nothing;
        ``full``: the limit that was passed before it.
        """
        with contextlib.suppress(SandboxError):
            await self._surely()
        if self.over:
            return f"{self.over}; files can be deleted, not written"
        return (
            f"before this command: {full}; it could delete files, not write them; now there is room"
        )

    async def at_the_end(self) -> str:
        """Look a last time, and return which limit is passed;
        empty also where it is not known what was there before.
        """
        if self._folders.new and not self._used:
            return ""
        # Without root, a directory that was closed to its own owner says nothing.
        with contextlib.suppress(SandboxError):
            await self._surely()
        return self.over if self.certain else ""

    async def _surely(self) -> str:
        try:
            return await patiently(self.look)
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be measured: {error}") from error

    @property
    def tmp_in_memory(self) -> bool:
        """Whether commands in a sandbox have a /tmp that is memory:
        none that lasts is given to them.
        """
        return self._folders.tmp is None

    @property
    def due(self) -> bool:
        """Whether it is time for another look."""
        return not self._looking and time.monotonic() >= self._due

    async def look(self, processes: Sequence[ProcessUsage] = ()) -> str:
        """Measure, and return which limit is passed;
        ``processes``: may hold files that have no name any more.
        """
        if self._folders.task < 0:
            return self.over
        folders = self._folders.copy()
        self._looking, begun = True, self._begun
        began = time.monotonic()
        try:
            work, whole, others = await asyncio.to_thread(_measured, folders, processes)
        finally:
            self._looking = False
            now = time.monotonic()
            self._due = now + max(_PAUSE_S, min(_REST * (now - began), _LONGEST_PAUSE_S))
        if begun != self._begun:
            return self.over
        if self.base is None:
            self.base, self.certain = work, whole
        self.over = self._excess(max(0, work - self.base), *others)
        return self.over

    def _excess(self, grown: int, tmp: int, kept: int) -> str:
        policy, self.used = self.policy, grown + tmp + kept
        if tmp > policy.tmp_bytes:
            return f"its /tmp holds {amount(tmp)}; [sandbox] tmp_bytes allows {amount(policy.tmp_bytes)}"
        if self.used > policy.max_disk_bytes:
            return (
                f"the task has put {amount(self.used)} on the disk, in its directory and /tmp;"
                f" [sandbox] max_disk_bytes allows {amount(policy.max_disk_bytes)}"
            )
        return ""


def _measured(
    folders: TaskFolders, processes: Sequence[ProcessUsage]
) -> tuple[int, bool, tuple[int, int]]:
    """Return what the directory takes, in bytes, and whether that is all of it;
    then the /tmp and one that is kept aside.

    Closes ``folders``.
    """
    try:
        devices = [os.fstat(descriptor).st_dev for descriptor in folders]
        work, whole = trees.size(folders.task, _LOOK_S)
        tmp, kept = (
            0 if folder is None else trees.size(folder, _LOOK_S)[0]
            for folder in (folders.tmp, folders.kept)
        )
        return work + OpenFiles.by(processes).nameless(devices), whole, (tmp, kept)
    finally:
        folders.close()
