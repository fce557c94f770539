"""``status``: how things stand, also for what counts."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from batchd import __version__
from batchd.control import Held, Standing, Status, standing
from batchd.control.giver import Giver
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.bases import Bases
from batchd.daemon.commands.rows import Rows
from batchd.daemon.current import Current
from batchd.daemon.desk import Figures
from batchd.daemon.ends.batches import Batches
from batchd.daemon.loop import Loop
from batchd.daemon.troubles import Tries, Troubles
from batchd.daemon.waits.retiring import Retiring
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.log import Action
from batchd.pool.supervisor import Supervisor
from batchd.records import Scope


@dataclass(slots=True, eq=False, repr=False)
class FrontDesk:
    """Knows what the daemon does right now; the listeners' ``Desk``."""

    _loop: Loop
    _current: Current
    _lifecycle: Lifecycle
    _troubles: Troubles
    _governor: Governor
    _batches: Batches
    _attempts: Attempts
    _pool: Supervisor
    _retiring: Retiring
    _bases: Bases
    _rows: Rows
    #: Whether what is dropped is taken up.
    _watching: bool
    #: ``Config.conditions`` as it began, where it works for ``batchd run`` alone: to ask for them reads key files.
    _conditions: str = ""
    _started_at: float = field(default_factory=time.time)

    async def status(self, request: Status, by: Giver) -> Standing:
        """Return how the daemon does; to a member of the group, nothing of what others' tasks do."""
        rows = await self._rows.found(request.last, request.batch)
        standing = msgspec.structs.replace(self._standing(), rows=rows)
        own = {"running": (), "fetching": ()} if by.member else {}
        return msgspec.structs.replace(standing, **own)

    def _standing(self) -> Standing:
        active = self._attempts.active
        given_back = self._lifecycle.given_back
        return Standing(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            draining=self._loop.closing,
            watching=self._watching,
            outbox=self._current.config.paths.outbox,
            conditions=self._conditions,
            batches=standing.Batches(open=len(self._batches)),
            tasks=standing.Tasks(
                queued=self._lifecycle.waiting - given_back,
                parked=given_back,
                running=len(active),
                waiting=self._governor.waiting,
            ),
            slots=self._pool.agents,
            providers=msgspec.convert(self._governor.figures(), dict[str, standing.Provider]),
            day=standing.Day(**self._governor.money.figures()),
            parked=tuple(map(Held.of, self._lifecycle.holds.parkings)),
            troubles=self._troubles.open,
            retiring=self._retiring.due,
            fetching=self._bases.fetching,
            workers=tuple(
                standing.Worker(
                    pid=w.pid or None,
                    node=w.node,
                    tasks=len(w.tasks),
                    rss=w.rss,
                    tasks_done=w.tasks_done,
                )
                for w in self._pool.workers
            ),
            unfit=self._pool.unfit.problems(),
            running=tuple(
                standing.Running(
                    task=str(a.ref),
                    attempt=a.attempt,
                    worker=a.worker.pid or None,
                    node=a.worker.node,
                    step=a.step,
                    detail=a.detail,
                    since=a.since,
                )
                for a in active
            ),
        )

    def figures(self) -> Figures:
        """Return it in numbers: there may be a thousand tasks at work, and this is asked for all the time."""
        active = self._attempts.active
        workers, parkings = self._pool.workers, self._lifecycle.holds.parkings
        given_back = self._lifecycle.given_back
        return Figures(
            draining=self._loop.closing,
            batches=len(self._batches),
            queued=self._lifecycle.waiting - given_back,
            running=len(active),
            parked=given_back,
            slots=self._pool.agents,
            workers=len(workers),
            workers_rss=sum(worker.rss for worker in workers),
            nodes=tuple((worker.node, len(worker.tasks)) for worker in workers if worker.node),
            providers=self._governor.figures(),
            parked_providers=tuple(
                (p.name, p.cause) for p in parkings if p.scope is Scope.PROVIDER
            ),
            parkings=Counter(parking.scope for parking in parkings),
            day=self._governor.money.figures(),
            troubles=tuple(trouble.what for trouble in self._troubles.open),
        )

    def trying(self, action: Action) -> Tries:
        """Return what notes that some work fails, and when it works again."""
        return self._troubles.trying(action)
