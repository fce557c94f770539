"""Outboxes, each with threads of its own:
what is done there waits for disks that hang or are full, and hurts no other outbox.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import TypeVar

from batchd import silent_paths
from batchd.daemon.troubles import TROUBLE_S, TroubleLog, TroubleSubject
from batchd.errors import NotPossibleError
from batchd.log import Action
from batchd.pauses import ThreadsAside
from batchd.records import Batch
from batchd.silent_paths import SilentPathError
from batchd.spool import outbox
from batchd.spool.outbox import OwnOutboxes

T = TypeVar("T")

#: The pause where a disk goes on refusing something: a thousand files may wait for months.
_LONGEST_PAUSE_S = 15.0
#: What does not answer for so long is reported; a disk under load may take seconds.
HANGS_S = 20.0
#: Threads of one disk: what hangs in all of them would hang in more too.
_THREADS = 4


@dataclass(slots=True, eq=False)
class Outboxes:
    """The only way to do something at an outbox."""

    troubles: TroubleLog
    _own: OwnOutboxes
    #: By path: the threads of each disk that somebody works on.
    _disks: dict[str, ThreadsAside] = field(default_factory=dict)
    #: What tasks name and does not answer, and who waits until it does.
    _silent: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    async def threads(self, disk: str) -> ThreadsAside:
        """Return the threads of a disk. Raises ``OSError`` where none can be started.

        It waits for nothing itself: who has ``patiently`` try it again does.
        """
        if disk not in self._disks:
            try:
                self._disks[disk] = ThreadsAside("disk", _THREADS)
            except RuntimeError as error:
                raise BlockingIOError(str(error)) from error
        return self._disks[disk]

    def close(self) -> None:
        """End all threads, without waiting for that."""
        for threads in self._disks.values():
            threads.close()
        self._disks.clear()

    async def at(self, work: Callable[[], T], folder: str) -> T:
        """Do something at an outbox, or on a disk, in a thread of its own."""
        threads = await self.threads(folder)
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def at_home(self, work: Callable[[], T], folder: str, *, make: bool = True) -> Callable[[], T]:
        """Return what does something at an outbox that is this spool's,
        and else raises ``StrangeOutboxError``.

        ``make``: the folder, if it is missing; else ``FileNotFoundError`` is raised.
        """

        def done() -> T:
            if not make:
                os.stat(folder)
            self._own.insist(folder)
            return work()

        return done

    def settle(self, folder: str) -> None:
        """Take an outbox to be the one that is there now, if it is not another spool's."""
        self._own.forget(folder)

    async def promptly(self, work: Callable[[], T], folder: str, *, make: bool = True) -> T:
        """Do something as ``at_home`` does, but wait no longer than for a disk under load:
        then it may yet be done.

        Raises ``OSError``.
        """
        doing = self.at(self.at_home(work, folder, make=make), folder)
        try:
            async with asyncio.timeout(HANGS_S):
                return await doing
        except TimeoutError:
            raise _silent(folder) from None

    async def on_disk(self, work: Callable[[], T], batch: Batch) -> T:
        """Do something in a batch's folder, again and again where it cannot be done; others go on
        where that folder alone is the trouble.
        """
        return await self.patiently(
            lambda: self.answered(self.at_home(work, batch.outbox), batch.outbox),
            Action.OUTBOX_TROUBLE,
            lambda: batch,
        )

    async def patiently(
        self,
        work: Callable[[], Awaitable[T]],
        action: Action,
        batch: Callable[[], Batch | None] = lambda: None,
    ) -> T:
        """Do what a disk, or the system, may refuse, again and again until it does not."""
        pause_s = TROUBLE_S
        with self.troubles.trying(action) as tries:
            while True:
                try:
                    return await work()
                except (OSError, NotPossibleError) as error:
                    tries.failed(error, await self._concerned(batch()))
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def answered(self, work: Callable[[], T], folder: str) -> T:
        """Do something as ``at`` does, and log when there is no answer for long;
        what hangs is waited for, for it may yet be done.
        """
        doing = asyncio.ensure_future(self.at(work, folder))
        try:
            await asyncio.wait({doing}, timeout=HANGS_S)
            if not doing.done():
                with self.troubles.trying(Action.OUTBOX_TROUBLE) as tries:
                    tries.failed(_silent(folder), TroubleSubject(outbox=folder))
                    await asyncio.wait({doing})
            return await doing
        finally:
            doing.cancel()

    async def look(self, work: Callable[[], T], path: str) -> T:
        """Look at a path that a task names, in a thread of its disk's own.

        Raises ``SilentPathError`` where it does not answer; then ``answers`` waits for it.
        """
        disk = silent_paths.disk(path)
        if disk in self._silent:
            raise SilentPathError(disk)
        await self.patiently(partial(self.threads, disk), Action.SANDBOX_TROUBLE)
        try:
            async with asyncio.timeout(HANGS_S):
                return await self.at(work, disk)
        except TimeoutError:
            raise SilentPathError(disk) from None

    async def answers(self, path: str) -> None:
        """Return once what tasks name answers; until then it is a trouble.

        All who ask meanwhile wait for one answer.
        """
        if path not in self._silent:
            self._silent[path] = asyncio.ensure_future(self._answers(path))
        await asyncio.shield(self._silent[path])

    async def _answers(self, path: str) -> None:
        ask, disk = partial(silent_paths.answered, path, TIMEOUT_MAX), silent_paths.disk(path)
        try:
            with self.troubles.trying(Action.PLACE_TROUBLE) as tries:
                tries.failed(SilentPathError(path))
                await self.patiently(lambda: self.at(ask, disk), Action.PLACE_TROUBLE)
        finally:
            del self._silent[path]

    async def _concerned(self, batch: Batch | None) -> TroubleSubject:
        """Return what it concerns that something of a batch's cannot be written."""
        if batch is None:
            return TroubleSubject()
        folder = batch.outbox
        try:
            await self.answered(self.at_home(partial(outbox.try_out, Path(folder)), folder), folder)
        except OSError:
            return TroubleSubject(outbox=folder)
        return TroubleSubject(batch=batch.name)


def _silent(folder: str) -> OSError:
    """Return what is said of an outbox that hangs."""
    return OSError(errno.ETIMEDOUT, "the outbox does not answer", folder)
