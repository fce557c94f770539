"""``tune``: the configuration of the running daemon changes, until it ends."""

from __future__ import annotations

from batchd.control import Tune, Tuned
from batchd.control.giver import Giver
from batchd.daemon.reloading import Reloader


async def tune(reloader: Reloader, request: Tune, _by: Giver) -> Tuned:
    """Change single keys, or take all such changes back, or tell what is changed."""
    return Tuned(overrides=await reloader.tune(request.changes, reset=request.reset))
