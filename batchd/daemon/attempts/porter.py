"""The porter: serves workers elsewhere with packs, and takes those that they send, part by part.

Such a worker may lie. What it asks for and sends is bounded: one thing at a time for each task, no
more than its task may put on the disk,
and a pack counts once it is whole, and is what it is called.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from msgspec.structs import replace

from batchd import wire
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.chainbook import ChainBook
from batchd.daemon.attempts.coming import Coming
from batchd.daemon.listeners import Listener
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.tuning import CurrentConfig
from batchd.errors import WorkspaceError
from batchd.records import Ref

#: A task, and the number of its attempt.
_Attempt: TypeAlias = tuple[Ref, int]

#: So many packs of changes may a chain have: a worker puts one in their place long before.
_MOST_PACKS = 256


@dataclass(slots=True, eq=False, repr=False)
class Porter(Listener):
    """Moves packs over the wire."""

    _loop: MainLoop
    _current: CurrentConfig
    _book: ChainBook
    #: What is coming, by the attempt.
    _coming: dict[_Attempt, Coming] = field(default_factory=dict)
    #: Attempts that wait for an answer, and those of them that are over by now.
    _asked: set[_Attempt] = field(default_factory=set)
    _over: set[_Attempt] = field(default_factory=set)

    def task_left(self, ref: Ref) -> None:
        """Drop what had come in part; what is being taken right now, behind that."""
        self._over.update(asked for asked in self._asked if asked[0] == ref)
        for attempt in [coming for coming in self._coming if coming[0] == ref]:
            if attempt not in self._over:
                self._loop.spawn(self._drop(attempt))

    async def _drop(self, attempt: _Attempt) -> None:
        """Forget the pack that comes for an attempt."""
        if (coming := self._coming.pop(attempt, None)) is not None:
            self._book.came(coming.digest)
            await asyncio.to_thread(coming.drop)

    async def serve(self, active: ActiveAttempt, message: wire.PackWanted | wire.PackSent) -> None:
        """Answer a worker, unless it is one that no worker of ours is: that ends."""
        wrong = self._wrong(active, message)
        if wrong:
            active.worker.kill(f"{wrong}: no worker of batchd does that")
            return
        asked = active.ref, active.attempt
        self._asked.add(asked)
        try:
            match message:
                case wire.PackWanted():
                    await self._give(active, message)
                case wire.PackSent():
                    await self._take_in(active, message)
        finally:
            self._asked.discard(asked)
            if asked in self._over:
                self._over.discard(asked)
                await self._drop(asked)

    def _wrong(self, active: ActiveAttempt, message: wire.PackWanted | wire.PackSent) -> str:
        """Return what no worker of ours does; empty: nothing."""
        if (active.ref, active.attempt) in self._asked:
            return "it asked for two things at once"
        if self._book.get(active.ref) is None:
            return "it asked for packs of a directory that has not left this machine"
        attempt = active.ref, active.attempt
        if isinstance(message, wire.PackSent) and message.offset and attempt not in self._coming:
            return "it sent the middle of a pack"
        return ""

    async def _give(self, active: ActiveAttempt, wanted: wire.PackWanted) -> None:
        """Send a part of a pack."""
        ref, attempt = active.ref, active.attempt
        packs = active.chain.packs if active.chain else ()
        pack = next((each for each in packs if each.digest == wanted.digest), None)
        try:
            if pack is None:
                raise FileNotFoundError(errno.ENOENT, "its chain has no such pack")
            data = await asyncio.to_thread(_part, self._book.shelf.path(pack), wanted.offset)
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
            active.answer(
                wire.PackTaken(ref=ref, attempt=attempt, errno=number, message=str(error))
            )
            return
        active.answer(wire.PackPart(ref=ref, attempt=attempt, data=data))

    async def _take_in(self, active: ActiveAttempt, sent: wire.PackSent) -> None:
        """Take a part of what a task has changed; with the last one it is durable."""
        taken = wire.PackTaken(ref=active.ref, attempt=active.attempt)
        try:
            await self._take((active.ref, active.attempt), sent)
        except OSError as error:
            taken = replace(taken, errno=error.errno or errno.EIO, message=str(error))
        except WorkspaceError as error:
            active.worker.kill(f"it sent a message that no worker of batchd sends: {error}")
            return
        active.answer(taken)

    async def _take(self, attempt: _Attempt, sent: wire.PackSent) -> None:
        """Take a part. Raises ``OSError`` where it cannot be kept,
        ``WorkspaceError`` for what is no pack.
        """
        kept, most = self._book.get(attempt[0]), self._current.config.sandbox.max_disk_bytes
        if kept is None:
            raise OSError(errno.ESTALE, "its directory has come home meanwhile")
        if not sent.offset:
            earlier = 0 if sent.whole else sum(pack.size for pack in kept.chain.changes)
            if earlier + sent.pack.size > most:
                why = f"what the task has changed is more than {most:,} bytes, packed: [sandbox] max_disk_bytes"
                raise OSError(errno.EFBIG, why)
            if not sent.whole and len(kept.chain.changes) >= _MOST_PACKS:
                raise WorkspaceError(
                    f"it sent more than {_MOST_PACKS} packs, and none in their place"
                )
            await self._drop(attempt)
            coming = Coming(self._book.shelf, sent.pack, most)
            self._book.coming(coming.digest)
            self._coming[attempt] = coming
        if not await asyncio.to_thread(
            self._coming[attempt].add, sent.pack, sent.offset, sent.data
        ):
            return
        changes = (sent.pack,) if sent.whole else (*kept.chain.changes, sent.pack)
        await self._book.store(
            replace(
                kept,
                chain=replace(kept.chain, changes=changes),
                came=kept.came + 1,
                came_bytes=kept.came_bytes + sent.pack.size,
            ),
            kept,
        )
        self._book.came(self._coming.pop(attempt).digest)  # its draft bears its name by now
        if sent.whole:  # who sends that again and again must not fill the disk
            await self._book.drop(kept.chain.changes)


def _part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(wire.MAX_PART)
