"""How things stand, for ``status``."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

from batchd import __version__
from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.daemon.dispatch import Dispatcher
from batchd.daemon.parking import ParkingLot


class Standing:
    """Tells what the daemon does right now."""

    def __init__(
        self, core: Core, batches: Batches, dispatcher: Dispatcher, lot: ParkingLot
    ) -> None:
        self._core = core
        self._batches = batches
        self._dispatcher = dispatcher
        self._lot = lot
        self._started_at = time.time()

    async def status(self, _arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return it, as JSON has it."""
        core, active = self._core, self._dispatcher.active
        return {
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self._started_at,
            "draining": core.closing,
            "batches": {"open": len(self._batches)},
            "tasks": {
                "queued": len(core.schedule) - len(active),
                "running": len(active),
                "waiting": core.governor.waiting,
            },
            "slots": core.config.pool.processes * core.config.pool.agents_per_process,
            "providers": core.governor.told(),
            "day": core.governor.money.told(),
            "parked": [dataclasses.asdict(parking) for parking in self._lot.parkings],
            "troubles": [dataclasses.asdict(trouble) for trouble in core.troubles.open],
            "workers": [
                # Without a number while it is being started.
                {
                    "pid": w.pid or None,
                    "tasks": len(w.tasks),
                    "rss": w.rss,
                    "tasks_done": w.tasks_done,
                }
                for w in self._dispatcher.pool.workers
            ],
            "running": [
                {
                    "task": str(a.ref),
                    "attempt": a.attempt,
                    "worker": a.worker.pid or None,
                    "step": a.step,
                    "detail": a.detail,
                    "since": a.since,
                }
                for a in active
            ],
        }
