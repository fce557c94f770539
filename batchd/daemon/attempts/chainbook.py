"""The chains of tasks whose directories are elsewhere,
as they are stored, beside the packs that they are made of.

STATE/packs/DIGEST          packs
STATE/packs/tasks/REF       a task's chain
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace

from batchd import decoders, trees
from batchd.actions import Action
from batchd.daemon.tuning import CurrentConfig
from batchd.log import get_logger
from batchd.records import Base, Chain, Pack, Ref
from batchd.spool import files
from batchd.workspace.packs import Shelf

K = TypeVar("K", bound=Hashable)

_FOLDER, _TASKS = "packs", "tasks"
#: While directories are packed, a pack that is younger may be on no chain yet, in seconds.
_YOUNG_S = 120.0


class KeyedLocks(Generic[K]):
    """A lock for each key, for as long as it is held or waited for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[K, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: K) -> asyncio.Lock:
        """Return the lock of a key: the same one until all that have it let it go."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


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
    #: Why it could not be laid out, when that was tried last; empty: it can, or it was not tried.
    problem: str = ""


@dataclass(slots=True, eq=False, repr=False)
class ChainBook:
    """The owner of all chains of tasks that have not come home,
    and of the packs: what it has said is durable.
    """

    _current: CurrentConfig
    _known: dict[Ref, Kept] = field(default_factory=dict)
    #: Chains that are there and cannot be read, and why: their tasks do not go on without them.
    _unread: dict[Ref, str] = field(default_factory=dict)
    #: Packs that come from elsewhere and are on no chain yet, by their digests.
    _coming: Counter[str] = field(default_factory=Counter)
    #: How many directories are being packed: the packs that come of it have no name yet.
    _packing: int = 0
    #: One at a time writes each chain.
    _locks: KeyedLocks[Ref] = field(default_factory=KeyedLocks)

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
        """Take up what the last daemon left; what is known already stays as it is.

        Raises ``OSError``.
        """
        tasks = self.folder / _TASKS
        if not tasks.is_dir():
            return
        self.shelf.prepare()
        files.sweep(tasks)
        for path in tasks.iterdir():
            ref = Ref(*path.name.split(".")) if path.name.count(".") == 1 else None
            if ref is not None and ref.batch and ref not in self._known:
                self._take_up(ref)

    def _take_up(self, ref: Ref) -> None:
        try:
            self._known[ref] = decoders.decode(self._path(ref).read_bytes(), Kept)
        except FileNotFoundError:
            self._unread.pop(ref, None)
        except (OSError, msgspec.DecodeError) as error:
            why = f"the list of packs of its directory cannot be read: {self._path(ref)}: {error}"
            if ref not in self._unread:
                get_logger().error(
                    Action.DIRECTORY_TROUBLE, batch=ref.batch, task=ref.task, message=why
                )
            self._unread[ref] = why
        else:
            self._unread.pop(ref, None)

    async def unreadable(self, ref: Ref) -> str:
        """Return why a task's chain cannot be read, after another try;
        empty: it can, or there is none.
        """
        if ref in self._unread:
            await asyncio.to_thread(self._take_up, ref)
        return self._unread.get(ref, "")

    async def prepare(self) -> None:
        """Make the folders, for batchd's user alone. Raises ``OSError``."""
        await asyncio.to_thread(self.shelf.prepare)
        tasks = self.folder / _TASKS
        await asyncio.to_thread(partial(tasks.mkdir, mode=0o700, exist_ok=True))

    async def store(self, kept: Kept, was: Kept | None) -> None:
        """Make a chain durable in the place of another one; None: there is none.

        Raises ``OSError``, also where that is not so.
        """
        async with self._locks.of(kept.ref):
            if self._known.get(kept.ref) is not was:
                raise OSError(errno.ESTALE, "its directory has come home meanwhile")
            await self._write(kept)

    async def mark(self, ref: Ref, problem: str) -> None:
        """Note, durably, why a task's directory could not be laid out. Raises ``OSError``."""
        async with self._locks.of(ref):
            if (kept := self._known.get(ref)) is not None and kept.problem != problem:
                await self._write(replace(kept, problem=problem))

    async def _write(self, kept: Kept) -> None:
        body, path = msgspec.json.encode(kept), self._path(kept.ref)
        await asyncio.to_thread(
            partial(
                files.write_whole, path, lambda file: file.write(body), replace=True, mode=0o600
            )
        )
        self._known[kept.ref] = kept

    async def forget(self, ref: Ref) -> None:
        """Remove a chain, durably. Raises ``OSError``: then it stays."""
        async with self._locks.of(ref):
            await asyncio.to_thread(_remove, self._path(ref))
            self._known.pop(ref, None)

    def forget_others(self, needed: Iterable[Ref]) -> None:
        """Remove the chains of all other tasks, but those that could not be laid out. Blocks."""
        for ref in self._known.keys() - set(needed):
            if not self._known[ref].problem:
                del self._known[ref]
                with contextlib.suppress(OSError):  # the next start tries it again
                    _remove(self._path(ref))

    # What is on its way

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """Keep packs that are made meanwhile until they are on a chain."""
        self._packing += 1
        try:
            yield
        finally:
            self._packing -= 1

    def coming(self, digest: str) -> None:
        """Keep a pack that comes from elsewhere, until ``came``."""
        self._coming[digest] += 1

    def came(self, digest: str) -> None:
        """Take that it is on a chain, or does not come."""
        self._coming[digest] -= 1
        if not self._coming[digest]:
            del self._coming[digest]

    async def drop(self, packs: Iterable[Pack]) -> None:
        """Remove those of these packs that no chain has. Raises ``OSError``."""
        needed = self._needed()
        for pack in packs:
            if pack.digest not in needed:
                await asyncio.to_thread(self.shelf.path(pack).unlink, missing_ok=True)

    async def clean(self, besides: Iterable[str]) -> None:
        """Remove the packs that no chain has, ``besides`` these, by their digests."""
        if self._unread:
            return  # they may be on one of those
        needed = self._needed().union(besides)
        with contextlib.suppress(OSError):  # the next one tries it again
            await asyncio.to_thread(self.shelf.sweep, needed, _YOUNG_S if self._packing else 0.0)

    def _needed(self) -> set[str]:
        return {pack.digest for kept in self for pack in kept.chain.packs} | self._coming.keys()

    def _path(self, ref: Ref) -> Path:
        # Neither holds a full stop.
        return self.folder / _TASKS / f"{ref.batch}.{ref.task}"


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        trees.sync(path.parent)
