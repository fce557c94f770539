"""Chains: what the directories of tasks that are worked on elsewhere are made of, and how they come home.

Where machines do not share a disk, a task's directory goes to its worker as packs, and what the task changes comes back
as packs, each durable here before an event counts that believes in it. They are laid out in the directory itself, in the
sandbox, before the task's result is written, or before a worker of this machine takes the task up.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from batchd.actions import Action
from batchd.daemon.attempts import packwork
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.chainbook import ChainBook, Kept
from batchd.daemon.current import CurrentConfig
from batchd.daemon.listeners import Listener
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.errors import WorkspaceError
from batchd.events import TaskFinished
from batchd.log import get_logger
from batchd.records import Base, Batch, Chain, Pack, Ref, Task

#: So many directories are packed, or laid out, at a time.
_AT_ONCE = 4
#: So often a directory that cannot be laid out is tried again, and the pause between, in seconds.
_TRIES, _PAUSE_S = 5, 2.0


@dataclass(slots=True, eq=False, repr=False)
class Chains(Listener):
    """Sends directories away, and brings them home."""

    _loop: MainLoop
    _current: CurrentConfig
    _outboxes: Outboxes
    _book: ChainBook
    #: The packs of mirrors: by mirror and commit.
    _bases: dict[tuple[str, str], Pack] = field(default_factory=dict)
    #: One at a time lays out each task's directory, or packs each mirror; and so many work at a time.
    _locks: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def restore(self) -> None:
        """Take up what the last daemon left."""
        self._book.restore()

    def sweep(self, needed: Iterable[Ref]) -> None:
        """Forget the chains of all other tasks, and remove the packs that are in none; before any work begins."""
        self._book.forget_others(needed)
        self._clean_soon()

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:  # noqa: ARG002 (a listener's)
        """Forget what it never needed: it ended before it began, though it was under way to a worker."""
        if self._book.get(ref) is not None:
            self._book.forget(ref)
            self._clean_soon()

    def batch_finished(self, batch: Batch, summary: str) -> None:  # noqa: ARG002 (a listener's)
        """Forget the packs of mirrors: the next batch may find others there."""
        self._bases.clear()
        self._clean_soon()

    def _clean_soon(self) -> None:
        if self._book.folder.is_dir():
            self._loop.spawn(self.clean())

    async def clean(self) -> None:
        """Remove the packs that no chain has; while any are on their way, none."""
        await self._book.clean(pack.digest for pack in self._bases.values())

    # Away, and home

    async def ready(
        self, active: ActiveAttempt, task: Task, batch: Batch, *, away: bool, begun: bool
    ) -> str:
        """Have a task's directory be where it is to be worked on; return why that cannot be, empty: it is.

        ``away``: its worker does not have this machine's disk. ``begun``: the task has worked in it before.
        """
        directory = batch.directory(task)
        for other in self._book:
            # One that has ended is on its way home, or the task's own is to come.
            due = _meets(other.directory, directory) and not (away and other.ref == active.ref)
            if due and (problem := await self.home(other.ref, batch)):
                return problem
        if not away:
            return ""
        await self._book.arriving()
        try:
            kept = self._book.get(active.ref)
            if kept is None:
                active.detail = "its directory is packed"
                made = partial(self._sent_away, active, task, directory, begun=begun)
                kept = await self._outboxes.patiently(made, Action.SANDBOX_TROUBLE)
            active.chain = kept.chain
        except WorkspaceError as error:
            return str(error)
        finally:
            self._book.arrived()
        return ""

    async def _sent_away(
        self, active: ActiveAttempt, task: Task, directory: str, *, begun: bool
    ) -> Kept:
        """Return a chain, begun with what is here. Raises ``OSError``, ``WorkspaceError``."""
        await self._book.prepare()
        base = active.base
        first = None
        if task.dir or begun:
            first = await self._packed(directory)
        chain = Chain(base=await self._of_mirror(base) if base else None, first=first)
        kept = Kept(
            ref=active.ref,
            directory=directory,
            fresh=not task.dir,
            chain=chain,
            base=base if first is None else None,
        )
        await self._book.store(kept)
        return kept

    async def _of_mirror(self, base: Base) -> Pack:
        async with self._locks[base.mirror]:
            key = base.mirror, base.commit
            if key not in self._bases or not await asyncio.to_thread(
                self._book.shelf.has, self._bases[key]
            ):
                self._bases[key] = await self._packed(base.mirror, mirror=True)
            return self._bases[key]

    async def _packed(self, directory: str, *, mirror: bool = False) -> Pack:
        async with self._turns:
            return await packwork.packed(
                self._current.config, self._book.folder, directory, mirror=mirror
            )

    async def home(self, ref: Ref, batch: Batch) -> str:
        """Lay out what a task has changed elsewhere in its directory here; return why that cannot be, empty: it is.

        Where the disk takes nothing, that is waited for.
        """
        if self._book.get(ref) is None:
            return ""
        async with self._locks[str(ref)]:
            kept = self._book.get(ref)
            if kept is None:
                return ""
            problem = await self._laid(kept, batch)
            about = {"batch": ref.batch, "task": ref.task}
            if problem:
                problem = f"what it has changed elsewhere cannot be laid out in {kept.directory}: {problem}"
                kept_at = await asyncio.to_thread(self._book.set_aside, kept)
                where = f"{problem}: its packs are kept in {kept_at}"
                get_logger().error(Action.SANDBOX_TROUBLE, **about, message=where)
            elif kept.came:
                get_logger().info(
                    Action.DIRECTORY_CAME, **about, packs=kept.came, bytes=kept.came_bytes
                )
            self._book.forget(ref)
        del self._locks[str(ref)]
        self._clean_soon()
        return problem

    async def _laid(self, kept: Kept, batch: Batch) -> str:
        """Lay a directory out, again where that fails; return why it cannot be, empty: it is."""
        order = packwork.PackOrder(
            directory=kept.directory, fresh=kept.fresh, base=kept.base, changes=kept.chain.changes
        )
        laid = partial(packwork.laid, self._current.config, self._book.folder, order)
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            async with self._turns:
                problem = await self._outboxes.patiently(
                    laid, Action.SANDBOX_TROUBLE, lambda: batch
                )
            if not problem:
                break
        return problem


def _meets(one: str, other: str) -> bool:
    """Whether two directories are the same, or one lies in the other."""
    return os.path.commonpath((one, other)) in {one, other}
