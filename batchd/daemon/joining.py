"""Workers of other machines: how the gate hands them to the pool."""

from __future__ import annotations

import asyncio
from functools import partial

from batchd import wire
from batchd.config import Config
from batchd.pool.joining.gate import Gate
from batchd.pool.joining.identity import Identity
from batchd.pool.joining.invitations import Invitations
from batchd.pool.joining.joined import Joined
from batchd.pool.joining.ticket import address
from batchd.pool.supervisor import Supervisor

#: What a node that was frozen may take to notice that its lease is over, in seconds.
MARGIN_S = 5.0


def gate(
    config: Config, identity: Identity | None, invitations: Invitations, pool: Supervisor
) -> Gate | None:
    """Return what lets workers of other machines in; None: none may join. Raises ``NotPossibleError``."""
    place = address(config.pool.listen)
    if identity is None or place is None:
        return None
    # Where directories are shared, what a lost node works on may change until its lease is over.
    fence_s = config.pool.heartbeat_timeout_s + MARGIN_S if config.workspace.shared else 0.0
    return Gate(place, identity, invitations, partial(_admit, pool, fence_s))


def _admit(pool: Supervisor, fence_s: float, transport: asyncio.Transport, join: wire.Join) -> None:
    pool.admit(Joined(transport, join.node, join.pid, fence_s))
