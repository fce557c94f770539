"""``tune``: the configuration of the running daemon changes, until it ends."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.control import Tune, Tuned
from batchd.control.requester import Requester
from batchd.daemon.reloading import Reloader


@dataclass(slots=True, eq=False, repr=False)
class TuneHandler:
    """The handler of ``Tune``: changes single keys."""

    _reloader: Reloader

    async def tune(self, request: Tune, _by: Requester) -> Tuned:
        """Change single keys, or take all such changes back, or say what is changed."""
        return Tuned(overrides=await self._reloader.tune(request.changes, reset=request.reset))
