"""``status``: how things stand, also for what counts."""

from __future__ import annotations

import os
import time
from collections import Counter

import msgspec

from batchd import __version__
from batchd.control import Held, Standing, Status, standing
from batchd.control.giver import Giver
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.daemon.desk import Figures
from batchd.daemon.retiring import Retiring
from batchd.daemon.troubles import Tries
from batchd.log import Action
from batchd.pool.supervisor import Supervisor
from batchd.records import Scope


class FrontDesk:
    """Tells what the daemon does right now; the listeners' ``Desk``."""

    def __init__(
        self,
        core: Core,
        batches: Batches,
        attempts: Attempts,
        *,
        pool: Supervisor,
        retiring: Retiring,
    ) -> None:
        self._core = core
        self._batches = batches
        self._attempts = attempts
        self._pool = pool
        self._retiring = retiring
        self._started_at = time.time()

    async def status(self, _request: Status, _by: Giver) -> Standing:
        """Return how the daemon does."""
        core, active = self._core, self._attempts.active
        given_back = core.lifecycle.given_back
        return Standing(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            draining=core.closing,
            batches=standing.Batches(open=len(self._batches)),
            tasks=standing.Tasks(
                queued=core.lifecycle.waiting - given_back,
                parked=given_back,
                running=len(active),
                waiting=core.governor.waiting,
            ),
            slots=core.config.pool.processes * core.config.pool.agents_per_process,
            providers=msgspec.convert(core.governor.told(), dict[str, standing.Provider]),
            day=standing.Day(**core.governor.money.told()),
            parked=tuple(map(Held.of, core.lifecycle.holds.parkings)),
            troubles=core.troubles.open,
            retiring=self._retiring.due,
            workers=tuple(
                standing.Worker(
                    pid=w.pid or None, tasks=len(w.tasks), rss=w.rss, tasks_done=w.tasks_done
                )
                for w in self._pool.workers
            ),
            running=tuple(
                standing.Running(
                    task=str(a.ref),
                    attempt=a.attempt,
                    worker=a.worker.pid or None,
                    step=a.step,
                    detail=a.detail,
                    since=a.since,
                )
                for a in active
            ),
        )

    def figures(self) -> Figures:
        """Return it in numbers: there may be a thousand tasks at work, and this is asked for all the time."""
        core, active = self._core, self._attempts.active
        workers, parkings = self._pool.workers, core.lifecycle.holds.parkings
        given_back = core.lifecycle.given_back
        return Figures(
            draining=core.closing,
            batches=len(self._batches),
            queued=core.lifecycle.waiting - given_back,
            running=len(active),
            parked=given_back,
            slots=core.config.pool.processes * core.config.pool.agents_per_process,
            workers=len(workers),
            workers_rss=sum(worker.rss for worker in workers),
            providers=core.governor.told(),
            parked_providers=tuple(
                (p.name, p.cause) for p in parkings if p.scope is Scope.PROVIDER
            ),
            parkings=Counter(parking.scope for parking in parkings),
            day=core.governor.money.told(),
            troubles=tuple(trouble.what for trouble in core.troubles.open),
        )

    def trying(self, action: Action) -> Tries:
        """Return what notes that some work fails, and when it works again."""
        return self._core.troubles.trying(action)
