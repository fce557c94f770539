"""The chains of tasks whose directories are elsewhere, as they are stored, beside the packs that they are made of.

STATE/packs/DIGEST          packs
STATE/packs/tasks/REF       a task's chain
STATE/packs/aside/REF/      the packs of one that could not be laid out, for people
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from batchd.actions import Action
from batchd.daemon.current import CurrentConfig
from batchd.log import get_logger
from batchd.records import Base, Chain, Pack, Ref
from batchd.spool import files
from batchd.workspace.packs import Shelf

_FOLDER, _TASKS, _ASIDE = "packs", "tasks", "aside"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
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


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True, eq=False, repr=False)
class ChainBook:
    """Knows the chains of tasks that have not come home; each is durable before it counts."""

    _current: CurrentConfig
    _known: dict[Ref, Kept] = field(default_factory=dict)
    #: How many packs are on their way, and whether none are being removed right now.
    _arriving: int = 0
    _tidy: asyncio.Event = field(default_factory=_set)

    @property
    def folder(self) -> Path:
        """Where packs lie."""
        return Path(self._current.config.paths.state, _FOLDER)

    @property
    def shelf(self) -> Shelf:
        """The packs."""
        return Shelf(self.folder)

    def get(self, ref: Ref) -> Kept | None:
        """Return a task's chain; None: its directory is at home."""
        return self._known.get(ref)

    def __iter__(self) -> Iterator[Kept]:
        """Yield all of them."""
        return iter(tuple(self._known.values()))

    def restore(self) -> None:
        """Take up what the last daemon left."""
        tasks = self.folder / _TASKS
        if not tasks.is_dir():
            return
        self.shelf.prepare()
        for path in tasks.iterdir():
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            except (OSError, msgspec.DecodeError) as error:
                message = f"{path} cannot be read: {error}"
                get_logger().error(Action.SANDBOX_TROUBLE, message=message)
                continue
            self._known[kept.ref] = kept

    async def prepare(self) -> None:
        """Make the folders, for batchd's user alone. Raises ``OSError``."""
        await asyncio.to_thread(self.shelf.prepare)
        tasks = self.folder / _TASKS
        await asyncio.to_thread(partial(tasks.mkdir, mode=0o700, exist_ok=True))

    async def store(self, kept: Kept) -> None:
        """Make a chain durable. Raises ``OSError``."""
        body, path = msgspec.json.encode(kept), self._path(kept.ref)
        await asyncio.to_thread(
            partial(
                files.write_whole, path, lambda file: file.write(body), replace=True, mode=0o600
            )
        )
        self._known[kept.ref] = kept

    def forget(self, ref: Ref) -> None:
        """Remove a chain."""
        self._known.pop(ref, None)
        self._path(ref).unlink(missing_ok=True)

    def forget_others(self, needed: Iterable[Ref]) -> None:
        """Remove the chains of all other tasks."""
        for ref in self._known.keys() - set(needed):
            self.forget(ref)

    async def drop(self, packs: Iterable[Pack], besides: AbstractSet[str]) -> None:
        """Remove those of these packs that no chain has, ``besides`` some, by their digests."""
        needed = besides | self._needed()
        for pack in packs:
            if pack.digest not in needed:
                await asyncio.to_thread(self.shelf.path(pack).unlink, missing_ok=True)

    def set_aside(self, kept: Kept) -> Path:
        """Keep the packs of a chain that cannot be laid out, in their order, for people; return where. Blocks."""
        place = self.folder / _ASIDE / self._path(kept.ref).name
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number, pack in enumerate(kept.chain.changes, 1):
                os.link(self.shelf.path(pack), place / f"{number:03}")
        return place

    def _needed(self) -> set[str]:
        return {pack.digest for kept in self for pack in kept.chain.packs}

    async def arriving(self) -> None:
        """Take that a pack is about to come that is on no chain yet: until ``arrived``, none is swept away."""
        while not self._tidy.is_set():
            await self._tidy.wait()
        self._arriving += 1

    def arrived(self) -> None:
        """Take that it is on one, or does not come."""
        self._arriving -= 1

    async def clean(self, besides: Iterable[str]) -> None:
        """Remove the packs that no chain has, ``besides`` these, by their digests; while any are on their way, none."""
        if self._arriving or not self._tidy.is_set():
            return
        self._tidy.clear()
        try:
            await asyncio.to_thread(self.shelf.sweep, self._needed().union(besides))
        except OSError:
            pass  # the next one tries it again
        finally:
            self._tidy.set()

    def _path(self, ref: Ref) -> Path:
        # Neither holds a full stop.
        return self.folder / _TASKS / f"{ref.batch}.{ref.task}"
