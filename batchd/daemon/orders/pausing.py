"""Pausing and resuming: everything, a provider, a batch, a task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.daemon.parking import ParkingLot
from batchd.errors import UsageError
from batchd.records import Cause, Parking, Ref, Scope


class Pausing:
    """Has the parking lot park what people name, and lets it go on."""

    def __init__(self, core: Core, batches: Batches, lot: ParkingLot) -> None:
        self._core = core
        self._batches = batches
        self._lot = lot

    async def pause(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let nothing of a scope start, and have what runs give its slot back."""
        scope, name = self._scope(arguments)
        message = arguments.get("message") or "paused"
        parking = Parking(
            scope=scope, name=name, cause=Cause.PAUSED, message=str(message), since=time.time()
        )
        return {"parked": await self._lot.park(parking)}

    async def resume(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
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
