"""The directory of a task on a machine that does not share the daemon's disk: how it comes, and how its changes go back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchd import trees, wire, workspace
from batchd.agent import DirectoryPlaces, LocalDirectory, StopSignal
from batchd.errors import FolderError, SandboxError, WorkspaceError
from batchd.pool.cache import Cache
from batchd.records import Pack, SandboxPolicy
from batchd.sandbox import Sandbox, Workplace
from batchd.workspace import packing
from batchd.workspace.directory_listing import DirectoryLook, Listing, changes, lasting

#: After so many packs of changes, one takes their place.
_MAX_CHANGE_PACKS = 32
#: What a directory may have that comes: what it holds was bounded where it was made (bytes).
_ROOMY = 1 << 44
#: How long until a daemon's disk that took nothing is tried again, in seconds.
_AGAIN_S = 5.0


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
        """``ask``: sends a message, and returns its answer. ``waits``: shows people what it waits for."""
        assert run.chain is not None, "its directory travels"
        self._run = run
        self._chain = run.chain
        self._cache = cache
        self._policy = policy
        self._ask = ask
        self._stop = stop
        self._waits = waits
        self._folder = cache.folder(run.ref, run.attempt)
        #: What lay there before the task changed anything, and what the daemon has; None: not looked at yet.
        self._origin: Listing | None = None
        self._before: Listing | None = None
        self._count = len(run.chain.changes)

    def places(self, run: wire.Run) -> DirectoryPlaces:
        """Return where everything lies on this machine."""
        base = self._chain.base
        return DirectoryPlaces(
            directory=str(self._folder / "task"),
            fresh=not run.task.dir,
            tmp=str(self._folder / "tmp"),
            base=str(self._cache.base(base)) if base else "",
        )

    async def arrive(self) -> None:
        """Fetch what is not here, and make the directory of it."""
        for pack in self._chain.packs:
            await self._fetched(pack)
        await asyncio.to_thread(self._folder.mkdir, 0o700)
        begun = self._run.base is not None and bool(self._run.history)
        made = self._chain.first or self._chain.changes or begun
        if not (made or self._chain.base):
            return  # it is made where it is opened first
        roomy = replace(self._policy, network=False, max_file_bytes=_ROOMY, max_disk_bytes=_ROOMY)
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
                await self._unpacked(place, self._chain.first)
            elif begun and self._run.base is not None:
                await workspace.make(place, self._run.base, self._run.base_s)
            if self._chain.changes:
                self._origin = (await packing.seen(place, self._run.base_s)).seen
            for pack in self._chain.changes:
                await self._unpacked(place, pack)

    async def _based(self, sandbox: Sandbox, pack: Pack) -> None:
        """Have what clones and copies begin as lie here, once for all tasks of this worker."""
        folder = self._cache.base(pack)
        whole = Path(f"{folder}.whole")
        async with self._cache.making[pack.digest]:
            if await asyncio.to_thread(whole.exists):
                return
            await asyncio.to_thread(trees.remove, folder)
            with await sandbox.open(str(folder), fresh=True, network=False, env={}) as place:
                await self._unpacked(place, pack)
            await asyncio.to_thread(whole.touch)

    async def _unpacked(self, place: Workplace, pack: Pack) -> None:
        with self._cache.shelf.reading(pack) as reading:
            await packing.unpacked(place, reading, self._run.base_s)

    async def _fetched(self, pack: Pack) -> None:
        """Have a pack be on the shelf. Raises ``OSError``, ``WorkspaceError``, ``FolderError``."""
        shelf = self._cache.shelf
        async with self._cache.making[pack.digest]:
            if await asyncio.to_thread(shelf.has, pack):
                return
            draft = shelf.draft()
            try:
                with draft.open("xb") as file:
                    while file.tell() < pack.size:
                        if self._stop.requested:
                            raise FolderError("its agent is to stop before its directory is here")
                        part = await self._part(pack, file.tell())
                        await asyncio.to_thread(file.write, part)
                await asyncio.to_thread(shelf.keep, draft, pack)
            finally:
                draft.unlink(missing_ok=True)
            await asyncio.to_thread(self._cache.trim)

    async def _part(self, pack: Pack, offset: int) -> bytes:
        run = self._run
        wanted = wire.PackWanted(
            ref=run.ref, attempt=run.attempt, digest=pack.digest, offset=offset
        )
        answer = await self._ask(wanted)
        if isinstance(answer, wire.PackTaken):
            raise WorkspaceError(
                f"the daemon does not have what its directory is made of: {answer.message}"
            )
        data: bytes = answer.data
        if not data:
            raise WorkspaceError("the daemon has only a part of what its directory is made of")
        return data

    async def leave(self) -> None:
        """Take the directory away."""
        await asyncio.to_thread(trees.remove, self._folder)

    async def begin(self, place: Workplace) -> None:
        """Take the directory as it is now for what the daemon has."""
        self._before = (await self._seen(place)).seen
        if self._origin is None:
            self._origin = self._before

    async def _seen(self, place: Workplace) -> DirectoryLook:
        try:
            return await packing.seen(place, self._run.base_s)
        except OSError as error:
            raise SandboxError(f"the task's directory cannot be looked at: {error}") from error

    async def keep(self, place: Workplace) -> None:
        """Send what has changed since the last time, if anything has."""
        if self._before is None or self._origin is None:
            return  # it has not begun
        found = await self._seen(place)
        closed = set(found.closed)
        what = changes(self._before, found.seen, closed)
        if not what:
            return
        whole = self._count >= _MAX_CHANGE_PACKS
        if whole:
            what = changes(self._origin, found.seen, closed)
        shelf = self._cache.shelf
        draft = shelf.draft()
        try:
            pack = await packing.packed(
                place,
                what,
                found.seen,
                draft,
                most=self._policy.max_disk_bytes,
                timeout_s=self._run.base_s,
            )
            await self._sent(draft, pack, whole=whole)
            await asyncio.to_thread(draft.rename, shelf.path(pack))
        except OSError as error:
            raise SandboxError(f"what has changed cannot be sent: {error}") from error
        finally:
            draft.unlink(missing_ok=True)
        self._count = 1 if whole else self._count + 1
        # What runs in the background may write at this moment.
        self._before = lasting(found.seen) if place.running else found.seen
        await asyncio.to_thread(self._cache.trim)

    async def _sent(self, draft: Path, pack: Pack, *, whole: bool) -> None:
        """Return when the daemon has a pack durably. Raises ``OSError``, ``FolderError``, ``StaleAttemptError``."""
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
                        raise OSError(errno.ENOSPC, taken.message)
                    why = f"what has changed cannot be kept: {taken.message}"
                    if self._stop.requested:
                        raise FolderError(why)
                    self._waits(why)
                    await asyncio.sleep(_AGAIN_S)
