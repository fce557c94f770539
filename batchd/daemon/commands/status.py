"""``status``: how things stand, also for what counts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from batchd import __version__, catalog, decoders
from batchd.control import DaemonStatus, ModelWarning, ShownParking, Status, status
from batchd.daemon import main_loop
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.bases import Bases
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.troubles import Tries, TroubleLog
from batchd.daemon.tuning import CurrentConfig
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.log import Action
from batchd.pool.supervisor import Supervisor
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: A question about more batches is cut: an answer is one line.
_MAX_BATCHES = 1000


@dataclass(slots=True, eq=False, repr=False)
class Desk:
    """Says what the daemon does right now; the listeners' ``StatusDesk``."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _troubles: TroubleLog
    _governor: Governor
    _batches: OpenBatches
    _attempts: Attempts
    _pool: Supervisor
    _bases: Bases
    #: The store's file.
    _store: Path
    #: Whether what is dropped is taken up.
    _watching: bool
    #: ``Config.conditions`` as it began, where it works for ``batchd run`` alone:
    #: to ask for them reads key files.
    _conditions: str = ""
    _started_at: float = field(default_factory=time.time)

    async def status(self, request: Status) -> DaemonStatus:
        """Return how the daemon does, and the batches that are asked for.

        Raises ``StoreError``.
        """
        last = max(0, min(request.last, _MAX_BATCHES))
        rows: tuple[status.ListedBatch, ...] = ()
        if last or request.batch:
            rows = await asyncio.to_thread(_listed, self._store, last, request.batch)
        return msgspec.structs.replace(
            self.standing(),
            rows=rows,
            retiring=tuple(self._ending()),
            running=tuple(
                status.RunningTask(
                    task=str(a.ref),
                    attempt=a.attempt,
                    worker=a.worker.pid or None,
                    node=a.worker.node,
                    step=a.step,
                    detail=a.detail,
                    since=a.since,
                )
                for a in self._attempts.active
            ),
        )

    def standing(self) -> DaemonStatus:
        """Return how the daemon stands, without single tasks and models."""
        given_back = self._lifecycle.given_back
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            draining=main_loop.current().closing,
            watching=self._watching,
            outbox=self._current.config.paths.outbox,
            conditions=self._conditions,
            batches=status.BatchCounts(open=len(self._batches)),
            tasks=status.TaskCounts(
                queued=self._lifecycle.waiting - given_back,
                parked=given_back,
                running=len(self._attempts.active),
                waiting=self._governor.waiting,
            ),
            slots=self._pool.agents,
            providers=decoders.convert(self._governor.figures(), dict[str, status.ProviderStatus]),
            day=status.DayStatus(**self._governor.money.figures()),
            parked=tuple(map(ShownParking.of, self._lifecycle.holds.parkings)),
            troubles=self._troubles.open,
            fetching=self._bases.fetching,
            workers=tuple(
                status.WorkerStatus(
                    pid=w.pid or None,
                    node=w.node,
                    tasks=len(w.tasks),
                    rss=w.rss,
                    tasks_done=w.tasks_done,
                )
                for w in self._pool.workers
            ),
            unfit={
                name: str(machine.trouble[0])
                for name, machine in self._pool.machines.items()
                if machine.trouble
            },
        )

    def trying(self, action: Action) -> Tries:
        """Return what notes that some work fails, and when it works again."""
        return self._troubles.trying(action)

    def _ending(self) -> Iterator[ModelWarning]:
        """Yield the models in use, by tasks that have not ended or by default, that end soon."""
        config, today = self._current.config, catalog.today()
        named = {
            config.agent.model: "[agent] model and its task files",
            config.evaluation.judge_model: "[evaluation] judge_model",
        }
        for model in dict.fromkeys((*named, *sorted(self._lifecycle.models()))):
            provider = config.providers.get(model.partition("/")[0])
            end = catalog.end(model, provider.base_url) if provider else None
            if end is not None and end.due(today):
                day = end.on.isoformat() if end.on else None
                fix = f"{end.fix}, in {named.get(model, 'its task files')}"
                yield ModelWarning(end.model, day, end.words(today), fix)


def _listed(store: Path, last: int, batch: str) -> tuple[status.ListedBatch, ...]:
    """Return a batch, or without a name so many of the newest. Raises ``StoreError``."""
    with StoreReader(store) as reader:
        found = [reader.batch(batch)] if batch else reader.batches(limit=last)
        return tuple(map(_row, found))


def _row(row: BatchRow) -> status.ListedBatch:
    batch = row.batch
    return status.ListedBatch(
        name=batch.name,
        folder=batch.folder,
        request=batch.request,
        received_at=batch.received_at,
        rejected=bool(row.problems),
        **{f: getattr(row, f) for f in status.ListedBatch.__struct_fields__ if hasattr(row, f)},
    )
