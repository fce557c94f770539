"""What the control socket can ask for: how things stand, and what waits; see ``orders`` for what else is ordered."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

from batchd import __version__
from batchd.control import Handler
from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.daemon.dispatch import Dispatcher
from batchd.daemon.parking import ParkingLot
from batchd.errors import UsageError
from batchd.records import Cause, Parking, Ref, Scope


class Commands:
    """Answers requests."""

    def __init__(
        self, core: Core, batches: Batches, dispatcher: Dispatcher, lot: ParkingLot
    ) -> None:
        self._core = core
        self._batches = batches
        self._dispatcher = dispatcher
        self._lot = lot
        self._started_at = time.time()

    def table(self) -> Mapping[str, Handler]:
        """Return what answers each verb."""
        return {
            "status": self._status,
            "pause": self._pause,
            "resume": self._resume,
        }

    async def _status(self, _arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell what the daemon does right now."""
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
            "providers": core.governor.told(),
            "parked": [dataclasses.asdict(parking) for parking in self._lot.parkings],
            "workers": [
                {"pid": w.pid, "tasks": len(w.tasks), "rss": w.rss, "tasks_done": w.tasks_done}
                for w in self._dispatcher.pool.workers
            ],
            "running": [
                {
                    "task": str(a.ref),
                    "attempt": a.attempt,
                    "worker": a.worker.pid,
                    "step": a.step,
                    "detail": a.detail,
                    "since": a.since,
                }
                for a in active
            ],
        }

    async def _pause(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let nothing of a scope start, and have what runs give its slot back."""
        scope, name = self._scope(arguments)
        message = arguments.get("message") or "paused"
        parking = Parking(
            scope=scope, name=name, cause=Cause.PAUSED, message=str(message), since=time.time()
        )
        return {"parked": await self._lot.park(parking)}

    async def _resume(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let a scope go on, whatever it waits for; without a scope, everything but what is uncertain.

        What may have been done already is named by whoever knows better.
        """
        if not arguments.get("scope"):
            parkings = self._lot.parkings
            wanted = {(p.scope, p.name) for p in parkings if p.cause is not Cause.UNCERTAIN}
        else:
            scope, name = self._scope(arguments)
            wanted = {(scope, name)}
            if scope is Scope.BATCH:
                # A batch's tasks may be parked one by one.
                wanted |= {
                    (p.scope, p.name)
                    for p in self._lot.parkings
                    if p.scope is Scope.TASK and p.name.startswith(f"{name}/")
                }
        return {"resumed": await self._lot.resume(*sorted(wanted))}

    def _scope(self, arguments: Mapping[str, Any]) -> tuple[Scope, str]:
        """Return the scope that a request names. Raises ``UsageError`` where there is no such thing."""
        name = str(arguments.get("name", ""))
        try:
            scope = Scope(arguments.get("scope", ""))
        except ValueError:
            raise UsageError(f"no scope; the scopes are {', '.join(Scope)}") from None
        if scope is Scope.PROVIDER and name not in self._core.config.providers:
            known = ", ".join(self._core.config.providers)
            raise UsageError(f"no provider {name}; known are {known}")
        if scope is Scope.BATCH and self._batches.get(name) is None:
            raise UsageError(f"no batch {name} is under way")
        if scope is Scope.TASK and (
            "/" not in name or Ref(*name.split("/", 1)) not in self._core.schedule
        ):
            raise UsageError(f"no task {name} is under way")
        return scope, name if scope in {Scope.PROVIDER, Scope.BATCH, Scope.TASK} else ""
