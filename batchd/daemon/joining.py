"""Workers of other machines: how the gate hands them to the pool."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from batchd import wire
from batchd.config import Config
from batchd.pool.joining.gate import Gate
from batchd.pool.joining.identity import Identity
from batchd.pool.joining.invitations import Invitations, digest
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
    return Gate(place, identity, invitations, Doorway(pool, fence_s))


@dataclass(slots=True, eq=False, repr=False)
class Doorway:
    """Hands workers that are let in to the pool."""

    _pool: Supervisor
    #: How long after the last word of a worker what it works on may still change.
    _fence_s: float
    #: Those that are in the pool, by the digest of the word that ends them.
    _lives: WeakValueDictionary[str, Joined] = field(default_factory=WeakValueDictionary)

    def admit(self, transport: asyncio.Transport, join: wire.Join, badge: int) -> None:
        """Take a worker in."""
        life = Joined(transport, join.node, join.pid, self._fence_s, badge)
        self._lives[join.parting] = life
        self._pool.admit(life)

    def ended(self, parting: str) -> None:
        """Take a keeper's word that a worker has ended: what it had is free at once."""
        life = self._lives.get(digest(parting))
        if life is not None:
            life.gone()
