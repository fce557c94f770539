"""Chains: what the directories of tasks that are worked on elsewhere are made of, and how they come home.

Where machines do not share a disk, a task's directory goes to its worker as packs, and what the task changes comes back
as packs, each durable here before an event counts that believes in it. They are laid out in the directory itself, in the
sandbox, before the task's result is written, or before a worker of this machine takes the task up.

STATE/packs/DIGEST          packs
STATE/packs/tasks/REF       a task's chain
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from batchd import wire
from batchd.daemon.attempts import packwork
from batchd.daemon.attempts.active import Active
from batchd.daemon.attempts.coming import Coming
from batchd.daemon.current import Current
from batchd.daemon.listener import Listener
from batchd.daemon.loop import Loop
from batchd.daemon.outboxes import Outboxes
from batchd.errors import WorkspaceError
from batchd.events import TaskFinished
from batchd.log import Action, get_logger
from batchd.records import Base, Batch, Chain, Pack, Ref, Task
from batchd.spool import files
from batchd.workspace.packs import Shelf

_FOLDER, _TASKS = "packs", "tasks"
#: So many packs of changes may a chain have: a worker puts one in their place long before.
_MOST_PACKS = 256
#: So often a directory that cannot be laid out is tried again, and the pause between, in seconds.
_TRIES, _PAUSE_S = 5, 2.0


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A task's chain, as it is stored."""

    ref: Ref
    #: Where its directory lies on this machine.
    directory: str
    #: Whether it is made there where it is missing.
    fresh: bool
    chain: Chain
    #: What it is made to be before its changes are laid out; None: it is as it should be.
    base: Base | None = None
    #: What has come, over all attempts: packs, and their bytes.
    came: int = 0
    came_bytes: int = 0


@dataclass(slots=True, eq=False, repr=False)
class Chains(Listener):
    """Sends directories away, and brings them home."""

    _loop: Loop
    _current: Current
    _outboxes: Outboxes
    #: The chains of tasks that have not come home.
    _known: dict[Ref, _Kept] = field(default_factory=dict)
    #: What is coming, by the task.
    _coming: dict[Ref, Coming] = field(default_factory=dict)
    #: The packs of mirrors: by mirror and commit.
    _bases: dict[tuple[str, str], Pack] = field(default_factory=dict)
    #: One at a time works on each directory, or mirror.
    _locks: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    #: What is being made, or sent, and may be on no chain yet.
    _under_way: int = 0

    @property
    def _folder(self) -> Path:
        return Path(self._current.config.paths.state, _FOLDER)

    @property
    def _shelf(self) -> Shelf:
        return Shelf(self._folder)

    # What is stored

    def restore(self) -> None:
        """Take up what the last daemon left."""
        tasks = self._folder / _TASKS
        if not tasks.is_dir():
            return
        self._shelf.prepare()
        for path in tasks.iterdir():
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except (OSError, msgspec.DecodeError) as error:
                get_logger().error(
                    Action.SANDBOX_TROUBLE, message=f"{path} cannot be read: {error}"
                )
                continue
            self._known[kept.ref] = kept

    def sweep(self, needed: Iterable[Ref]) -> None:
        """Forget the chains of all other tasks, and remove the packs that are in none; before any work begins."""
        wanted = set(needed)
        for ref in self._known.keys() - wanted:
            self._forget(ref)
        self._clean_soon()

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:  # noqa: ARG002 (a listener's)
        """Forget what it never needed: it ended before it began, though it was under way to a worker."""
        if ref in self._known:
            self._forget(ref)
            self._clean_soon()

    def task_left(self, ref: Ref) -> None:
        """Drop what had come in part."""
        if (coming := self._coming.pop(ref, None)) is not None:
            self._loop.spawn(asyncio.to_thread(coming.drop))

    def batch_finished(self, batch: Batch, summary: str) -> None:  # noqa: ARG002 (a listener's)
        """Forget the packs of mirrors: the next batch may find others there."""
        self._bases.clear()
        self._clean_soon()

    async def _store(self, kept: _Kept) -> None:
        """Make a chain durable. Raises ``OSError``."""
        body = msgspec.json.encode(kept)
        path = self._path(kept.ref)
        write = partial(
            files.write_whole, path, lambda file: file.write(body), replace=True, mode=0o600
        )
        await asyncio.to_thread(write)
        self._known[kept.ref] = kept

    def _forget(self, ref: Ref) -> None:
        self._known.pop(ref, None)
        self._path(ref).unlink(missing_ok=True)

    def _path(self, ref: Ref) -> Path:
        # Neither holds a full stop.
        return self._folder / _TASKS / f"{ref.batch}.{ref.task}"

    def _clean_soon(self) -> None:
        if self._folder.is_dir():
            self._loop.spawn(self.clean())

    async def clean(self) -> None:
        """Remove the packs that no chain has; while any are on their way, none."""
        if self._under_way or self._coming:
            return
        needed = {pack.digest for kept in self._known.values() for pack in kept.chain.packs}
        needed |= {pack.digest for pack in self._bases.values()}
        with contextlib.suppress(OSError):  # the next one tries it again
            await asyncio.to_thread(self._shelf.sweep, needed)

    # Away, and home

    async def ready(
        self, active: Active, task: Task, batch: Batch, *, away: bool, begun: bool
    ) -> str:
        """Have a task's directory be where it is to be worked on; return why that cannot be, empty: it is.

        ``away``: its worker does not have this machine's disk. ``begun``: the task has worked in it before.
        """
        directory = batch.directory(task)
        for other in [
            ref for ref, kept in self._known.items() if _meets(kept.directory, directory)
        ]:
            # One that has ended is on its way home, or the task's own is to come.
            due = other != active.ref or not away
            if due and (problem := await self.home(other, batch)):
                return problem
        if not away:
            return ""
        self._under_way += 1
        try:
            kept = self._known.get(active.ref)
            if kept is None:
                active.detail = "its directory is packed"
                made = partial(self._sent_away, active, task, directory, begun=begun)
                kept = await self._outboxes.patiently(made, Action.SANDBOX_TROUBLE)
            active.chain = kept.chain
        except WorkspaceError as error:
            return str(error)
        finally:
            self._under_way -= 1
        return ""

    async def _sent_away(self, active: Active, task: Task, directory: str, *, begun: bool) -> _Kept:
        """Return a chain, begun with what is here. Raises ``OSError``, ``WorkspaceError``."""
        await asyncio.to_thread(self._shelf.prepare)
        tasks = self._folder / _TASKS
        await asyncio.to_thread(partial(tasks.mkdir, mode=0o700, exist_ok=True))
        base = active.base
        first = None
        if task.dir or begun:
            async with self._locks[directory]:
                first = await self._packed(directory)
        chain = Chain(base=await self._of_mirror(base) if base else None, first=first)
        kept = _Kept(
            ref=active.ref,
            directory=directory,
            fresh=not task.dir,
            chain=chain,
            base=base if first is None else None,
        )
        await self._store(kept)
        return kept

    async def _of_mirror(self, base: Base) -> Pack:
        async with self._locks[base.mirror]:
            key = base.mirror, base.commit
            if key not in self._bases or not await asyncio.to_thread(
                self._shelf.has, self._bases[key]
            ):
                self._bases[key] = await self._packed(base.mirror, mirror=True)
            return self._bases[key]

    async def _packed(self, directory: str, *, mirror: bool = False) -> Pack:
        return await packwork.packed(self._current.config, self._folder, directory, mirror=mirror)

    async def home(self, ref: Ref, batch: Batch) -> str:
        """Lay out what a task has changed elsewhere in its directory here; return why that cannot be, empty: it is.

        Where the disk takes nothing, that is waited for.
        """
        if ref not in self._known:
            return ""
        async with self._locks[str(ref)]:
            kept = self._known.get(ref)
            if kept is None:
                return ""
            problem = ""
            for _ in range(_TRIES):
                laid = partial(packwork.laid, self._current.config, self._folder, _lay(kept))
                problem = await self._outboxes.patiently(
                    laid, Action.SANDBOX_TROUBLE, lambda: batch
                )
                if not problem:
                    break
                await asyncio.sleep(_PAUSE_S)
            about = {"batch": ref.batch, "task": ref.task}
            if problem:
                why = f"what it has changed elsewhere cannot be laid out in {kept.directory}: {problem}"
                get_logger().error(Action.SANDBOX_TROUBLE, **about, message=why)
            elif kept.came:
                get_logger().info(
                    Action.DIRECTORY_CAME, **about, packs=kept.came, bytes=kept.came_bytes
                )
            self._forget(ref)
        del self._locks[str(ref)]
        self._clean_soon()
        return problem

    # What workers ask for, and send

    async def give(self, active: Active, wanted: wire.PackWanted) -> None:
        """Send a part of a pack."""
        ref, attempt = active.ref, active.attempt
        packs = active.chain.packs if active.chain else ()
        pack = next((each for each in packs if each.digest == wanted.digest), None)
        try:
            if pack is None:
                raise FileNotFoundError(errno.ENOENT, "its chain has no such pack")
            data = await asyncio.to_thread(_part, self._shelf.path(pack), wanted.offset)
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            active.answer(
                wire.PackTaken(ref=ref, attempt=attempt, errno=number, message=str(error))
            )
            return
        active.answer(wire.PackPart(ref=ref, attempt=attempt, data=data))

    def wrong(self, active: Active, sent: wire.PackSent) -> str:
        """Return what in a part no worker of ours sends; empty: nothing."""
        if active.ref not in self._known:
            return "it sent a pack of a directory that has not left this machine"
        if sent.offset and active.ref not in self._coming:
            return "it sent the middle of a pack"
        return ""

    async def take(self, active: Active, sent: wire.PackSent) -> None:
        """Take a part of what a task has changed; with the last one it is durable."""
        taken = wire.PackTaken(ref=active.ref, attempt=active.attempt)
        try:
            await self._take(active.ref, sent)
        except OSError as error:
            taken = replace(taken, errno=error.errno or errno.EIO, message=str(error))
        except WorkspaceError as error:
            active.worker.kill(f"it sent what no worker of batchd sends: {error}")
            return
        active.answer(taken)

    async def _take(self, ref: Ref, sent: wire.PackSent) -> None:
        """Take a part. Raises ``OSError`` where it cannot be kept, ``WorkspaceError`` for what is no pack."""
        kept, most = self._known[ref], self._current.config.sandbox.max_disk_bytes
        if not sent.offset:
            earlier = 0 if sent.whole else sum(pack.size for pack in kept.chain.changes)
            if earlier + sent.pack.size > most or len(kept.chain.changes) >= _MOST_PACKS:
                why = f"what the task has changed is more than {most:,} bytes, packed: [sandbox] max_disk_bytes"
                raise OSError(errno.EFBIG, why)
            if (former := self._coming.pop(ref, None)) is not None:
                await asyncio.to_thread(former.drop)
            self._coming[ref] = Coming(self._shelf, sent.pack, most)
        coming = self._coming[ref]
        if not await asyncio.to_thread(coming.add, sent.pack, sent.offset, sent.data):
            return
        changes = (sent.pack,) if sent.whole else (*kept.chain.changes, sent.pack)
        await self._store(
            replace(
                kept,
                chain=replace(kept.chain, changes=changes),
                came=kept.came + 1,
                came_bytes=kept.came_bytes + sent.pack.size,
            )
        )
        self._coming.pop(ref, None)


def _lay(kept: _Kept) -> packwork.Order:
    return packwork.Order(
        directory=kept.directory, fresh=kept.fresh, base=kept.base, changes=kept.chain.changes
    )


def _meets(one: str, other: str) -> bool:
    """Whether two directories are the same, or one lies in the other."""
    return os.path.commonpath((one, other)) in {one, other}


def _part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(wire.MAX_PART)
