"""Open batches: from the store's promise to the last file in the outbox."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from batchd import results
from batchd.daemon import main_loop
from batchd.daemon.batch_names import BatchNames
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.listeners import Finisher
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.result_folders import ResultFolders
from batchd.daemon.writes import DaemonStore
from batchd.errors import Problem, UsedNameError, WithdrawnError
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle, inputs
from batchd.log import Action, escape, get_logger
from batchd.records import Batch, Task
from batchd.spool import outbox
from batchd.store import lookups, operations
from batchd.store.operations import wanted
from batchd.store.queries import StoreReader
from batchd.store.rows import StoredWork
from batchd.store.store import Store


@dataclass(slots=True, eq=False)
class OpenBatch:
    """A batch whose summary is not written yet."""

    batch: Batch
    #: Whether the dropped file lies in its folder.
    moved: bool = False
    #: Whether its last files are being written.
    closing: bool = False


@dataclass(slots=True, eq=False, repr=False)
class OpenBatches:
    """Open batches: each of their tasks, and each batch, gets its files."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _outboxes: Outboxes
    _governor: Governor
    #: They have their turn before a batch's summary is written.
    _finishers: Sequence[Finisher]
    #: Reserves their names, and folders.
    names: BatchNames = field(init=False)
    _open: dict[str, OpenBatch] = field(default_factory=dict)
    #: Whether results can be written into them.
    folders: ResultFolders = field(init=False)

    def __post_init__(self) -> None:
        self.names = BatchNames(self._store, self._outboxes)
        self.folders = ResultFolders(self._current, self._lifecycle, self._outboxes)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Batch]:
        return (known.batch for known in self._open.values())

    def get(self, name: str) -> Batch | None:
        """Return an open batch."""
        known = self._open.get(name)
        return known.batch if known else None

    def open(self, name: str) -> OpenBatch | None:
        """Return what is known of an open batch."""
        return self._open.get(name)

    def ending(self) -> Iterator[tuple[Batch, int, int]]:
        """Yield each batch with something that has ended and is not published.

        With it, its tasks without a result, 0 where the summary alone is missing; and how many of
        them wait for nothing but to be published.
        """
        lifecycle = self._lifecycle
        entries = lifecycle.entries.values() if lifecycle.ending else ()
        ended = collections.Counter(entry.ref.batch for entry in entries if not entry.phase.open)
        for name, known in self._open.items():
            left = len(lifecycle.of(name))
            if not left or ended[name]:
                yield known.batch, left, ended[name]

    # Taking up

    async def add(
        self, batch: Batch, tasks: Sequence[Task], check: Callable[[], None] = wanted
    ) -> Batch:
        """Store a batch and queue its tasks; return it with its final name. Then call ``moved``.

        ``check``: raises ``WithdrawnError`` where it is not wanted any more; so does this, then.
        """
        return self.opened(await self._stored(batch, tasks, check=check), tasks)

    def opened(self, batch: Batch, tasks: Sequence[Task]) -> Batch:
        """Queue the tasks of a batch that is stored, and return it. Then call ``moved``."""
        if batch.name not in self._open:
            self._open[batch.name] = OpenBatch(batch)
            self._governor.money.open_batch(batch.name, batch.budget_usd, 0.0)
            for facts in batch.facts(tasks):
                self._lifecycle.take(inputs.Accepted(facts))
            get_logger().info(
                Action.BATCH_RECEIVED, batch=batch.name, tasks=len(tasks), request=batch.request
            )
            main_loop.tell(lambda listener: listener.batch_received(batch, tasks))
            main_loop.wake()
        return batch

    async def reject(self, batch: Batch, problems: Sequence[Problem]) -> Batch:
        """Store a refused file; return its batch with its final name. Then call ``moved``."""
        batch = await self._stored(batch, (), problems)
        if batch.name not in self._open:
            self._open[batch.name] = OpenBatch(batch)
            errors = [str(problem) for problem in problems]
            get_logger().warning(Action.BATCH_REJECTED, batch=batch.name, errors=errors)
            main_loop.tell(lambda listener: listener.batch_rejected(batch, problems))
            self.look(batch.name)
        return batch

    async def _stored(
        self,
        batch: Batch,
        tasks: Sequence[Task],
        problems: Sequence[Problem] = (),
        check: Callable[[], None] = wanted,
    ) -> Batch:
        """Store a batch once the outbox takes its folder, which reserves its name.

        Until then it is no outbox's: it goes to the one that is configured when that works.
        """

        def here() -> Batch:
            return replace(batch, outbox=self._current.config.paths.outbox)

        while True:
            found = await self._outboxes.patiently(
                lambda: self.names.reserve(here()), Action.OUTBOX_TROUBLE, here
            )
            try:
                return await self._store.write(
                    operations.add_batch, found, tuple(tasks), problems, check
                )
            except UsedNameError:  # it was free in two outboxes at a time
                with contextlib.suppress(OSError):
                    await self.names.give_back(found)
            except WithdrawnError:
                with contextlib.suppress(OSError):
                    await self.names.give_back(found)
                raise

    async def try_out(self, folder: str) -> None:
        """See at once whether an outbox takes files, for who waits: a file that is dropped would
        wait for it. Raises ``NotPossibleError``.
        """
        work = partial(outbox.try_out, Path(folder))
        await self._store.ordered(lambda: self._outboxes.promptly(work, folder))

    async def bring(self, batch: Batch, data: bytes) -> None:
        """Write a batch's request into its folder as soon as that is possible."""
        request = Path(batch.folder, batch.request)
        publish = partial(outbox.publish, request, data, replace=True)
        await self._outboxes.on_disk(publish, batch)
        self.moved(batch.name)

    def moved(self, name: str) -> None:
        """Say that a batch's file lies in its folder, so that its summary may be the last file."""
        if known := self._open.get(name):
            known.moved = True
            self.look(name)

    def restore(self, restored: StoredWork, claimed: AbstractSet[str]) -> None:
        """Take up what the last daemon left;
        ``claimed``: the claims whose files are still to be moved.
        """
        for batch in restored.batches:
            known = self._open[batch.name] = OpenBatch(batch)
            known.moved = batch.claim not in claimed
            spent = (
                self._store.read(lookups.batch_money, batch.name).total if batch.budget_usd else 0.0
            )
            self._governor.money.open_batch(batch.name, batch.budget_usd, spent)
        for facts in restored.queued:
            self._lifecycle.take(inputs.Accepted(facts))
        for ref in restored.unpublished:
            self._lifecycle.take(inputs.Unpublished(ref))
        for name in self._open:
            self.look(name)

    @property
    def closed(self) -> bool:
        """Whether no task at all may start: none could leave a result, or run a command."""
        return self.folders.closed({known.batch.outbox for known in self._open.values()})

    # A batch's end

    def look(self, name: str) -> None:
        """See whether a batch can be closed."""
        known = self._open[name]
        if known.moved and not known.closing and not self._lifecycle.of(name):
            known.closing = True
            main_loop.spawn(self._close(known))

    async def _close(self, known: OpenBatch) -> None:
        """Write a batch's last files, the summary last of all."""
        batch = known.batch
        folder, now = Path(batch.folder), time.time()
        problems = self._store.read(lookups.problems, batch.name)
        sums = results.Sums()
        request = partial(os.path.lexists, folder / batch.request)
        if not await self._outboxes.on_disk(request, batch):
            message = f"{folder} was taken away before its summary; results.jsonl in the new one has all results"
            get_logger().warning(Action.OUTBOX_TROUBLE, batch=batch.name, message=message)
        there = await self._outboxes.on_disk(partial(outbox.summary, batch), batch)
        if not problems:
            sums = await self._outboxes.on_disk(
                partial(_write_results, self._store, batch, there is None), batch
            )
        if there is None and not problems:
            for finisher in self._finishers:
                await finisher.finish(batch, len(sums), self._current.config)

        def write() -> str:
            if there is not None:
                return there  # it was written before a crash, and somebody may have read it
            if problems:
                summary = results.rejected(batch, problems, now)
                text = "".join(f"{escape(str(problem))}\n" for problem in problems)
                outbox.publish(folder / "errors.txt", text.encode(), replace=True)
            else:
                summary = sums.summary(batch, now)
            outbox.publish(folder / "summary.json", summary.encode(), replace=True)
            return summary

        summary = await self._outboxes.on_disk(write, batch)
        await self._store.write(operations.batch_published, batch.name)
        del self._open[batch.name]
        self._governor.money.close_batch(batch.name)
        if not problems:
            get_logger().info(Action.BATCH_FINISHED, batch=batch.name, tasks=len(sums))
            main_loop.tell(lambda listener: listener.batch_finished(batch, summary))


def _write_results(store: Store, batch: Batch, replace: bool) -> results.Sums:
    """Write the results of a batch into one file, one at a time,
    for all may be more than the memory holds; return their sums.

    ``replace`` False: they lie there, and only the sums are wanted.
    """
    sums = results.Sums()

    def lines() -> Iterator[bytes]:
        with StoreReader(store.path) as reader:
            for _, text in reader.results(batch.name):
                sums.add(text)
                yield results.line(text).encode()

    if replace:
        path = Path(batch.folder, "results.jsonl")
        outbox.publish(path, lambda file: file.writelines(lines()), replace=True)
    else:
        collections.deque(lines(), maxlen=0)
    return sums
