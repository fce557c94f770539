"""The directory of a task on a machine that does not share the daemon's disk:
how it comes, and how its changes go back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from batchd import free_room, trees, wire, workspace
from batchd.agent import DirectoryPlaces, LocalDirectory, StopSignal
from batchd.errors import FolderError, SandboxError, TarError, WorkspaceError, cut
from batchd.pool.cache import Cache
from batchd.records import Pack, SandboxPolicy
from batchd.sandbox import Sandbox, Workplace
from batchd.workspace import packing
from batchd.workspace.directory_listing import (
    DirectoryLook,
    Listing,
    changes,
    lasting,
    shared,
    unsent,
)

#: After so many packs of changes, one takes their place.
_MAX_CHANGE_PACKS = 32
#: What a directory may have that comes: what it holds was bounded where it was made (bytes).
_ROOMY = 1 << 44
#: How long until a daemon's disk that took nothing is tried again, in seconds.
_AGAIN_S = 5.0
_STOPPED = "its agent is to stop before its directory is here"


class TravellingDirectory(LocalDirectory):
    """One attempt's directory, which came here, and whose changes go to the daemon."""

    travels = True

    def __init__(
        self,
        run: wire.Run,
        cache: Cache,
        policy: SandboxPolicy,
        *,
        ask: Callable[[wire.PackWanted | wire.PackSent], Awaitable[Any]],
        stop: StopSignal,
        waits: Callable[[str], None],
    ) -> None:
        """``ask``: sends a message, and returns its answer.

        ``waits``: shows people what it waits for.
        """
        assert run.chain is not None, "its directory travels"
        self._run = run
        self._chain = run.chain
        self._cache = cache
        self._policy = policy
        self._ask = ask
        self._stop = stop
        self._waits = waits
        self._folder = cache.folder(run.ref, run.attempt)
        #: What lay there before the task changed anything, and what the daemon has;
        #: None: not looked at yet.
        self._origin: Listing | None = None
        self._before: Listing | None = None
        self._count = len(run.chain.changes)
        #: What clones and copies begin as, once it is here for this one.
        self._base: Pack | None = None
        #: Why the directory could not be made.
        self._broken: WorkspaceError | None = None

    def places(self, run: wire.Run) -> DirectoryPlaces:
        """Return where everything lies on this machine.

        Raises ``WorkspaceError`` where it could not be made.
        """
        if self._broken is not None:
            raise self._broken
        base = self._chain.base
        return DirectoryPlaces(
            directory=str(self._folder / "task"),
            fresh=not run.task.dir,
            tmp=str(self._folder / "tmp"),
            base=str(self._cache.base(base)) if base else "",
        )

    async def arrive(self) -> None:
        """Fetch what is not here, and make the directory of it.

        Raises ``OSError``, ``SandboxError``, ``NotPossibleError`` where this machine cannot,
        ``FolderError`` where the agent is to stop. What no machine could make it of,
        ``places`` raises: by then there is an agent that can say so.
        """
        try:
            await self._arrived()
        except WorkspaceError as error:
            if number := free_room.refused(error):
                raise OSError(number, str(error)) from error
            self._broken = error

    async def _arrived(self) -> None:
        """Do so. Raises ``WorkspaceError`` as well."""
        await asyncio.to_thread(self._folder.mkdir, 0o700)
        begun = self._run.base is not None and bool(self._run.history)
        made = self._chain.first or self._chain.changes or begun
        if not (made or self._chain.base):
            return  # it is made where it is opened first
        roomy = replace(
            self._policy,
            network=False,
            max_file_bytes=_ROOMY,
            max_disk_bytes=_ROOMY,
            max_cpu_s=self._policy.max_cpu_s * max(len(self._chain.changes), 1),
        )
        sandbox = Sandbox(roomy)
        if self._chain.base is not None:
            await self._based(sandbox, self._chain.base)
        if not made:
            return
        places = self.places(self._run)
        with await sandbox.open(
            places.directory, fresh=True, network=False, env={}, base=places.base
        ) as place:
            if self._chain.first is not None:
                await self._unpacked(place, [self._chain.first])
            elif begun and self._run.base is not None:
                await workspace.make(place, self._run.base, self._run.base_s)
            if self._chain.changes:
                self._origin = (await packing.seen(place, self._run.base_s)).seen
                await self._unpacked(place, self._chain.changes)

    async def _based(self, sandbox: Sandbox, pack: Pack) -> None:
        """Fetch the initial files of clones and copies, once for all tasks of this worker."""
        folder = self._cache.base(pack)
        async with self._cache.making(folder.name):
            if not self._cache.use_base(pack):
                await asyncio.to_thread(trees.remove, folder)
                with await sandbox.open(str(folder), fresh=True, network=False, env={}) as place:
                    await self._unpacked(place, [pack])
                self._cache.made_base(pack)
            self._base = pack

    async def _unpacked(self, place: Workplace, packs: Sequence[Pack]) -> None:
        """Unpack packs that no one discards meanwhile.

        Raises ``OSError``, ``WorkspaceError``, ``SandboxError``, ``FolderError``.
        """
        shelf = self._cache.shelf
        try:
            with contextlib.ExitStack() as held:
                for pack in packs:
                    held.callback(os.close, await self._fetched(pack))
                await packing.unpacked(place, shelf, packs, self._run.base_s)
        except packing.PackError as error:
            if not free_room.refused(
                error
            ):  # what lay here may have become another: the next task gets it once more
                await asyncio.to_thread(partial(shelf.path(error.pack).unlink, missing_ok=True))
            raise
        finally:
            await asyncio.to_thread(self._cache.trim)

    async def _fetched(self, pack: Pack) -> int:
        """Fetch a pack to the shelf unless it is there, and hold it there.

        Raises ``OSError``, ``WorkspaceError``, ``FolderError``.
        """
        shelf = self._cache.shelf
        async with self._cache.making(pack.digest):
            while (held := await asyncio.to_thread(shelf.hold, pack)) < 0:
                draft = shelf.draft()
                try:
                    with draft.open("xb") as file:
                        while file.tell() < pack.size:
                            if self._stop.requested:
                                raise FolderError(_STOPPED)
                            part = await self._part(pack, file.tell())
                            await asyncio.to_thread(file.write, part)
                    await asyncio.to_thread(shelf.keep, draft, pack)
                finally:
                    draft.unlink(missing_ok=True)
            return held

    async def _part(self, pack: Pack, offset: int) -> bytes:
        run = self._run
        wanted = wire.PackWanted(
            ref=run.ref, attempt=run.attempt, digest=pack.digest, offset=offset
        )
        answer = await self._ask(wanted)
        if isinstance(answer, wire.PackTaken):
            raise WorkspaceError(
                f"the daemon does not have the packs of its directory: {answer.message}"
            )
        data: bytes = answer.data
        if not data:
            raise WorkspaceError("the daemon has only some of the packs of its directory")
        return data

    async def leave(self) -> None:
        """Take the directory away."""
        try:
            await asyncio.to_thread(trees.remove, self._folder)
        finally:
            if self._base is not None:
                self._cache.leave_base(self._base)
                self._base = None
                await asyncio.to_thread(self._cache.trim)

    async def begin(self, place: Workplace) -> None:
        """Take the directory as it is now for what the daemon has."""
        seen = (await self._seen(place)).seen
        self._before = shared(seen, self._origin or {})
        if self._origin is None:
            self._origin = self._before

    async def _seen(self, place: Workplace) -> DirectoryLook:
        try:
            return await packing.seen(place, self._run.base_s)
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be looked at: {error}") from error

    async def keep(self, place: Workplace) -> None:
        """Send what has changed since the last time, if anything has.

        Raises ``SandboxError``, ``WorkspaceError``
        where the daemon cannot have it all, ``FolderError``, ``StaleAttemptError``.
        """
        if self._before is None or self._origin is None:
            return  # it has not begun
        try:
            await packing.patiently(partial(self._kept, place, self._before, self._origin))
        except OSError as error:
            raise SandboxError(f"what has changed cannot be sent: {error}") from error
        except TarError as error:
            raise WorkspaceError(f"what has changed cannot travel: {error}") from error

    async def _kept(self, place: Workplace, before: Listing, origin: Listing) -> None:
        """Look, and send what has changed.

        Raises ``TarError`` too: then nothing was sent, and another try may help.
        """
        found = await self._seen(place)
        closed = set(found.closed)
        what = changes(before, found.seen, closed)
        if not what:
            return
        whole = self._count >= _MAX_CHANGE_PACKS
        if whole:
            what = changes(origin, found.seen, closed)
        shelf = self._cache.shelf
        draft = shelf.draft()
        most, timeout_s = self._policy.max_disk_bytes, self._run.base_s
        try:
            made = await packing.packed(
                place, what, found.seen, draft, most=most, timeout_s=timeout_s
            )
            if made.missing:
                await self._excused(place, found, made.missing)
            await self._sent(draft, made.pack, whole=whole)
            await asyncio.to_thread(draft.rename, shelf.path(made.pack))
        finally:
            draft.unlink(missing_ok=True)
        self._count = 1 if whole else self._count + 1
        # What runs in the background may write at this moment.
        seen = lasting(found.seen) if place.running else found.seen
        self._before = shared(unsent(seen, made.missing), before)
        await asyncio.to_thread(self._cache.trim)

    async def _excused(
        self, place: Workplace, found: DirectoryLook, missing: frozenset[str]
    ) -> None:
        """Raise ``TarError`` for what did not come though it lies there as it did;
        what went, or is another, is for the next time.
        """
        now = (await self._seen(place)).seen
        for path in sorted(missing):
            if now.get(path) == found.seen[path]:
                raise TarError(f"{cut(path)} cannot be read")

    async def _sent(self, draft: Path, pack: Pack, *, whole: bool) -> None:
        """Return when the daemon has a pack durably.

        Raises ``OSError``, ``FolderError``, ``StaleAttemptError``.
        """
        run = self._run
        with draft.open("rb") as file:
            while data := await asyncio.to_thread(file.read, wire.MAX_PART):
                message = wire.PackSent(
                    ref=run.ref,
                    attempt=run.attempt,
                    pack=pack,
                    offset=file.tell() - len(data),
                    data=data,
                    whole=whole,
                )
                while (taken := await self._ask(message)).errno:
                    if taken.errno == errno.EFBIG:
                        raise OSError(errno.EFBIG, taken.message)
                    why = f"what has changed cannot be kept: {taken.message}"
                    if self._stop.requested:
                        raise FolderError(why)
                    self._waits(why)
                    await asyncio.sleep(_AGAIN_S)
