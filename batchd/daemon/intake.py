"""The way from a claimed file to queued tasks, or to a refusal with all its reasons."""

from __future__ import annotations

import asyncio
import contextlib
import re
import traceback
from collections.abc import Callable, Iterator, Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from msgspec import structs

from batchd.children import ChildBugError
from batchd.config import Config
from batchd.control import Submit
from batchd.daemon import main_loop
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.parser import Parser
from batchd.daemon.writes import DaemonStore
from batchd.errors import Problem, TaskFileError
from batchd.log import Action, get_logger
from batchd.records import Batch
from batchd.silent_paths import SilentPathError
from batchd.spool import claims, outbox, taskfile
from batchd.spool.claims import Claim
from batchd.spool.inbox import Inbox
from batchd.store import lookups
from batchd.store.operations import wanted
from batchd.store.store import Store

#: Files that are taken up at a time: their syncs of the disk are shared.
_AT_ONCE = 256
#: A larger file is parsed apart from the loop.
_MAX_INLINE_BYTES = 8 << 10
#: So is one in which one of these stands: a schema may take seconds for each of its patterns, a
#: directory or a repository lie on a disk that hangs, and an escape hide any of them.
_SLOW_TO_PARSE = (b"output_schema", b'"dir"', b'"repo"', b"\\u")
#: The endings that a request keeps: a dropped file may be called anything.
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")


@dataclass(slots=True, eq=False, repr=False)
class Intake:
    """Takes up what the inbox claims."""

    _current: CurrentConfig
    _store: DaemonStore
    _outboxes: Outboxes
    _batches: OpenBatches
    parser: Parser = field(default_factory=lambda: Parser())
    #: The claims that an earlier daemon left.
    _earlier: AbstractSet[str] = frozenset()
    _free: asyncio.Semaphore = field(default_factory=partial(asyncio.Semaphore, _AT_ONCE))
    #: By ULID: claims that are being stored.
    _under_way: dict[str, asyncio.Event] = field(default_factory=dict)
    #: By outbox: files that wait to be moved there; the future holds whether that worked.
    _moves: dict[str, list[tuple[Path, Batch, asyncio.Future[bool]]]] = field(default_factory=dict)

    async def run(self, inbox: Inbox, earlier: AbstractSet[str]) -> None:
        """Take up what an inbox claims until it stops;
        ``earlier``: the claims that an earlier daemon left.
        """
        self._earlier = earlier
        async for claim in inbox.claims():
            await self._free.acquire()
            main_loop.spawn(self._take(claim))

    async def _take(self, claim: Claim) -> None:
        stored = self._under_way[claim.ulid] = asyncio.Event()
        try:
            batch = await self.stored(claim)
        finally:
            stored.set()
            del self._under_way[claim.ulid]
            # Its outbox may take nothing for months, and other files go to another.
            self._free.release()
        if batch is not None:
            await self.bring(claim, batch)

    async def stored(
        self, claim: Claim, order: Submit | None = None, check: Callable[[], None] = wanted
    ) -> Batch | None:
        """Store what a claimed file asks for, unless it is stored; None where it has vanished.

        ``order``: of a ``run``; None: it was dropped.
        ``check``: raises ``WithdrawnError`` where it is not wanted any more.
        """
        if known := self._store.read(lookups.claimed, claim.ulid):
            return known
        config = self._current.config
        batch = new_batch(claim.ulid, claim.name, config.paths.outbox, claim.received_at)
        try:
            parsed = await self._parsed(claim)
        except TaskFileError as error:
            if _gone(claim.path):
                gone = "somebody took it away before it was read"
                get_logger().warning(
                    Action.INBOX_TROUBLE, message=f"{claim.name} is not taken up: {gone}"
                )
                return None
            return await self._batches.reject(batch, error.problems)
        if parsed.after_batches:
            # Files are dropped one after the other, and claimed in that order.
            older = [event for ulid, event in self._under_way.items() if ulid < claim.ulid]
            for event in older:
                await event.wait()
        if unknown := tuple(self._unknown(parsed)):
            return await self._batches.reject(batch, unknown)
        batch = as_asked(batch, parsed)
        if order is not None:
            parallel = order.parallel or batch.parallel
            batch = structs.replace(batch, run=order.run, parallel=parallel)
        return await self._batches.add(batch, parsed.tasks, check)

    async def bring(self, claim: Claim, batch: Batch) -> None:
        """Move a claimed file into the folder of its batch."""
        if self._batches.get(batch.name) is None:
            # It is published, and perhaps collected: nothing more is to appear there.
            remove = partial(claim.path.unlink, missing_ok=True)
            await self._outboxes.patiently(lambda: asyncio.to_thread(remove), Action.INBOX_TROUBLE)
            return
        if not await self._moved(claim.path, batch):
            await self._outboxes.on_disk(lambda: move(claim.path, batch), batch)
        self._batches.moved(batch.name)

    def _unknown(self, parsed: taskfile.Parsed) -> Iterator[Problem]:
        """Yield what of the batches that a file comes after can never complete here."""
        for index, name in enumerate(parsed.after_batches):
            place = f"after_batches[{index}]"
            if not self._store.read(lookups.used, name):
                yield Problem(place, f"there is no batch {name!r}", "drop that one first")
            elif self._batches.get(name) is None and self._store.read(lookups.unfinished, name):
                why = f"{name} has tasks left, and a `batchd run` works on its own files alone"
                yield Problem(place, why, "`batchd serve` works on both")

    async def _parsed(self, claim: Claim) -> taskfile.Parsed:
        """Return the tasks of a claimed file. Raises ``TaskFileError``."""
        # What was there already when this daemon started may be what ended the last one.
        if claim.ulid not in self._earlier:
            with contextlib.suppress(OSError):  # it ran short of descriptors or memory
                if (parsed := self._at_once(claim)) is not None:
                    return parsed
        parse = partial(self._answered, claim)
        try:
            return await self._outboxes.patiently(parse, Action.INBOX_TROUBLE)
        except ChildBugError as error:
            raise self._broken(claim, error.trace) from error

    async def _answered(self, claim: Claim) -> taskfile.Parsed:
        """Return the tasks of a file once all that it names answers.

        Raises what ``Parser.parse`` raises, but ``SilentPathError``.
        """
        while True:
            try:
                return await self.parser.parse(claim.path, claim.name, self._current.config)
            except SilentPathError as error:
                self._free.release()  # other files have their turn meanwhile
                try:
                    await self._outboxes.answers(error.path)
                finally:
                    await self._free.acquire()

    def _at_once(self, claim: Claim) -> taskfile.Parsed | None:
        """Return the tasks of a small, simple file, without the way to another process;
        None: it is neither.

        Raises ``TaskFileError``, and ``OSError`` as ``read`` does.
        """
        config = self._current.config
        with contextlib.suppress(OSError):
            if claim.path.lstat().st_size > _MAX_INLINE_BYTES:
                return None
        data = taskfile.read(claim.path, config.spool.max_file_bytes)
        if any(key in data for key in _SLOW_TO_PARSE):
            return None
        try:
            return taskfile.parse(data, claim.name, config)
        except TaskFileError:
            raise
        except Exception as error:
            raise self._broken(claim, traceback.format_exc()) from error

    def _broken(self, claim: Claim, trace: str) -> TaskFileError:
        """Report a bug, which would be there again at the next start:
        it must not take the daemon with it.
        """
        message = f"{claim.name} broke the parser"
        get_logger().error(Action.INBOX_TROUBLE, message=message, details=trace)
        problem = Problem("", "an error inside batchd; its log has the details")
        return TaskFileError((problem,))

    async def _moved(self, path: Path, batch: Batch) -> bool:
        """Move a file to the outbox together with all that wait for the same;
        return whether it worked.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = self._moves.get(batch.outbox)
        if waiting is None:
            waiting = self._moves[batch.outbox] = []
            main_loop.spawn(self._move(batch.outbox))
        waiting.append((path, batch, future))
        return await future

    async def _move(self, folder: str) -> None:
        """Move what waits for an outbox."""
        try:
            while waiting := self._moves[folder]:
                group = waiting[:_AT_ONCE]
                del waiting[:_AT_ONCE]
                files = [(path, batch) for path, batch, _ in group]
                work = partial(outbox.publish_requests, files)
                outcomes = await self._outboxes.on_disk(work, group[0][1])
                for (_, _, future), error in zip(group, outcomes, strict=True):
                    if not future.done():
                        future.set_result(error is None)
        finally:
            del self._moves[folder]


def _gone(path: Path) -> bool:
    """Whether nothing is there any more; where the system does not say, something is."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def move(file: Path, batch: Batch) -> None:
    """Move a claimed file to its batch. Can be repeated. Raises ``OSError`` where it must be."""
    try:
        outbox.publish_request(file, batch)
    except FileNotFoundError:
        # Where somebody took the file away, the store has its tasks;
        # if it was the folder, it is made again.
        if not _gone(file):
            raise


async def move_claimed(config: Config, store: Store, outboxes: Outboxes) -> set[str]:
    """Move on the files of batches that are stored:
    all that the intake does for a daemon that does not watch.

    Return the claims of those that cannot be moved now: the next daemon tries again.
    """
    left: set[str] = set()
    paths = config.paths
    ours, _ = await asyncio.to_thread(claims.lying, Path(paths.inbox), Path(paths.state))
    for claim in ours:
        if batch := store.read(lookups.claimed, claim.ulid):
            try:
                await outboxes.promptly(partial(move, claim.path, batch), batch.outbox)
            except OSError:
                left.add(claim.ulid)
    return left


def new_batch(claim: str, filename: str, folder: str, received_at: float) -> Batch:
    """Return the batch that a dropped file becomes,
    before the store has the last word on its name.
    """
    ending = Path(filename).suffix
    return Batch(
        name=outbox.batch_name(filename),
        claim=claim,
        outbox=folder,
        request=f"request{ending if _ENDING.fullmatch(ending) else ''}",
        received_at=received_at,
    )


def as_asked(batch: Batch, parsed: taskfile.Parsed) -> Batch:
    """Return the batch with what its file says of it as a whole."""
    return structs.replace(
        batch,
        budget_usd=parsed.budget_usd,
        parallel=parsed.parallel,
        after_batches=parsed.after_batches,
    )
