"""Chains: what the directories of tasks that are worked
on elsewhere are made of, and how they come home.

Where machines do not share a disk, a task's directory goes to its worker as packs, and what the
task changes comes back as packs, each durable here before an event counts that believes in it. They
are laid out in the directory itself, in the sandbox, before the task's result is written,
or before a worker of this machine takes the task up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from batchd import trees
from batchd.actions import Action
from batchd.daemon.attempts import packwork
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.chainbook import ChainBook, Kept, KeyedLocks
from batchd.daemon.attempts.workspace_child import WorkspaceChildren
from batchd.daemon.listeners import Listener
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.tuning import CurrentConfig
from batchd.errors import NotPossibleError, WorkspaceError
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
    _children: WorkspaceChildren
    #: The packs of mirrors: by mirror and commit.
    _bases: dict[tuple[str, str], Pack] = field(default_factory=dict)
    #: One at a time lays out each task's directory, or packs each mirror;
    #: and so many work at a time.
    _locks: KeyedLocks[str] = field(default_factory=KeyedLocks)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    #: Since when a directory cannot come home; 0: all can.
    _stuck_at: float = 0.0

    def restore(self) -> None:
        """Take up what the last daemon left. Raises ``OSError``."""
        self._book.restore()

    def sweep(self, needed: Iterable[Ref]) -> None:
        """Forget the chains of all other tasks, and remove the packs that are in none;
        before any work begins.

        What could not be laid out is tried again.
        """
        needed = set(needed)
        self._book.forget_others(needed)
        for kept in self._book:
            if kept.ref not in needed:
                self._loop.spawn(self._again(kept.ref))
        self._clean_soon()

    @property
    def trouble(self) -> tuple[NotPossibleError, float] | None:
        """The trouble that directories cannot come home, with the fix, and since when; None:
        there is none.
        """
        stuck = [kept for kept in self._book if kept.problem]
        if not stuck:
            self._stuck_at = 0.0
            return None
        self._stuck_at = self._stuck_at or time.time()
        more = f" (and {len(stuck) - 1} more)" if len(stuck) > 1 else ""
        fix = "fix that, then restart the daemon, which tries again"
        return NotPossibleError(f"{stuck[0].ref}{more}: {stuck[0].problem}: {fix}"), self._stuck_at

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Forget what it never needed: it ended before it began,
        though it was under way to a worker.
        """
        kept = self._book.get(ref)
        if kept is not None and not kept.problem:
            self._loop.spawn(self._gone(ref))

    async def _gone(self, ref: Ref) -> None:
        forget = partial(self._book.forget, ref)
        await self._outboxes.patiently(forget, Action.DIRECTORY_TROUBLE)
        await self.clean()

    async def _again(self, ref: Ref) -> None:
        await self.home(ref, None)

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Forget the packs of mirrors that no task has any more."""
        needed = {pack.digest for kept in self._book for pack in kept.chain.packs}
        self._bases = {key: pack for key, pack in self._bases.items() if pack.digest in needed}
        self._clean_soon()

    def _clean_soon(self) -> None:
        if self._book.folder.is_dir():
            self._loop.spawn(self.clean())

    async def clean(self) -> None:
        """Remove the packs that no chain has."""
        await self._book.clean(pack.digest for pack in self._bases.values())

    # Away, and home

    async def ready(
        self, active: ActiveAttempt, task: Task, batch: Batch, *, away: bool, begun: bool
    ) -> str:
        """Prepare a task's directory where it is to be worked on; return why that failed, empty:
        it did not.

        A cancel ends the packing. ``away``: its worker does not have this machine's disk.
        ``begun``: the task has worked in it before.
        """
        directory = batch.directory(task)
        for other in self._book:
            # One that has ended is on its way home, or the task's own is to come.
            due = _meets(other.directory, directory) and not (away and other.ref == active.ref)
            if due and (problem := await self.home(other.ref, batch)):
                return problem
        if problem := await self._book.unreadable(active.ref):
            return problem
        if not away:
            return ""
        try:
            kept = self._book.get(active.ref)
            if kept is None:
                active.detail = "its directory is packed"
                made = partial(self._sent_away, active, task, directory, begun=begun)
                kept = await self._outboxes.patiently(made, Action.DIRECTORY_TROUBLE)
            active.chain = kept.chain if kept else None
        except WorkspaceError as error:
            return str(error)
        return ""

    async def _sent_away(
        self, active: ActiveAttempt, task: Task, directory: str, *, begun: bool
    ) -> Kept | None:
        """Return a chain, begun with what is here; None: the task is cancelled meanwhile.

        Raises ``OSError``, ``WorkspaceError``.
        """
        await self._book.prepare()
        base = active.base
        with self._book.packing():
            packs = partial(self._packs, directory if task.dir or begun else "", base)
            chain = await _unless_cancelled(active, packs)
            if chain is None:
                return None
            first = chain.first
            kept = Kept(
                ref=active.ref,
                directory=directory,
                fresh=not task.dir,
                chain=chain,
                base=base if first is None else None,
            )
            await self._book.store(kept, None)
        for pack in chain.packs:
            if not await asyncio.to_thread(self._book.shelf.has, pack):
                await self._book.forget(active.ref)
                raise OSError(errno.ENOENT, "a pack went before it was on its chain")
        return kept

    async def _packs(self, directory: str, base: Base | None) -> Chain:
        """Return a chain of what is here: a directory, where there is one, and a base."""
        first = await self._packed(directory) if directory else None
        return Chain(base=await self._of_mirror(base) if base else None, first=first)

    async def _of_mirror(self, base: Base) -> Pack:
        async with self._locks.of(base.mirror):
            key = base.mirror, base.commit
            if key not in self._bases or not await asyncio.to_thread(
                self._book.shelf.has, self._bases[key]
            ):
                self._bases[key] = await self._packed(base.mirror, mirror=True)
            return self._bases[key]

    async def _packed(self, directory: str, *, mirror: bool = False) -> Pack:
        async with self._turns:
            return await packwork.packed(
                self._children, self._current.config, self._book.folder, directory, mirror=mirror
            )

    async def home(self, ref: Ref, batch: Batch | None) -> str:
        """Lay out what a task has changed elsewhere in its directory here;
        return why that cannot be, empty: it is.

        Where the disk takes nothing, that is waited for.
        What cannot be laid out stays, to be tried again.
        """
        if self._book.get(ref) is None:
            return await self._book.unreadable(ref)
        async with self._locks.of(str(ref)):
            kept = self._book.get(ref)
            if kept is None:
                return ""
            problem = await self._laid(kept, batch)
            about = {"batch": ref.batch, "task": ref.task}
            if problem:
                problem = f"what it changed on another machine cannot be written to {kept.directory}: {problem}"
                get_logger().error(
                    Action.DIRECTORY_TROUBLE,
                    **about,
                    message=f"{problem}: its packs stay, and the next start tries again",
                )
                settled = partial(self._book.mark, ref, problem)
            else:
                if kept.came:
                    get_logger().info(
                        Action.DIRECTORY_CAME, **about, packs=kept.came, bytes=kept.came_bytes
                    )
                settled = partial(self._settled, kept)
            await self._outboxes.patiently(settled, Action.DIRECTORY_TROUBLE, lambda: batch)
        self._clean_soon()
        return problem

    async def _settled(self, kept: Kept) -> None:
        """Forget a chain once what was laid out is durable: until then the packs are all that is.

        Raises ``OSError``.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            await asyncio.to_thread(trees.sync, kept.directory, disk=True)
        await self._book.forget(kept.ref)

    async def _laid(self, kept: Kept, batch: Batch | None) -> str:
        """Lay a directory out, again where that fails; return why it cannot be, empty: it is."""
        layout = packwork.DirectoryLayout(
            directory=kept.directory, fresh=kept.fresh, base=kept.base, changes=kept.chain.changes
        )
        config, folder = self._current.config, self._book.folder
        laid = partial(packwork.laid, self._children, config, folder, layout)
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            async with self._turns:
                problem = await self._outboxes.patiently(
                    laid, Action.DIRECTORY_TROUBLE, lambda: batch
                )
            if not problem:
                break
        return problem


async def _unless_cancelled(
    active: ActiveAttempt, packs: Callable[[], Coroutine[Any, Any, Chain]]
) -> Chain | None:
    """Return a chain once it is packed; None: the task is cancelled meanwhile, or before."""
    if active.unwanted:
        return None
    active.packing = asyncio.create_task(packs())
    try:
        await asyncio.wait({active.packing})
        return None if active.packing.cancelled() else active.packing.result()
    finally:
        active.packing.cancel()
        active.packing = None


def _meets(one: str, other: str) -> bool:
    """Whether two directories are the same, or one lies in the other."""
    return os.path.commonpath((one, other)) in {one, other}
