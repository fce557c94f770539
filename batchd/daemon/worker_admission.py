"""Workers of other machines: what it takes for them to join,
and how the gate hands them to the pool.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from batchd import wire
from batchd.daemon.tuning import CurrentConfig
from batchd.errors import NotPossibleError
from batchd.pool.engines.crew import Crew, CrewTerms
from batchd.pool.engines.sizes import Takes
from batchd.pool.joining.certificate import identity
from batchd.pool.joining.invitations import Invitations, digest
from batchd.pool.joining.remote_worker import RemoteWorker
from batchd.pool.joining.ticket import address
from batchd.pool.joining.ticket_maker import TicketMaker
from batchd.pool.joining.worker_listener import WorkerListener
from batchd.pool.supervisor import Supervisor
from batchd.records import Has, Needs
from batchd.workspace import packs

#: What a node that was frozen may take to notice that its lease is over, in seconds.
MARGIN_S = 5.0


@dataclass(slots=True, eq=False, repr=False)
class WorkerAdmission:
    """Lets workers of other machines in."""

    gate: WorkerListener
    tickets: TicketMaker
    #: Has workers start on a Ray cluster; None: all that join are started by hand.
    crew: Crew | None
    _pool: Supervisor
    _work: Callable[[], Mapping[Needs, int]]
    #: Since when tasks wait for a first worker, in seconds since the epoch; 0: none does.
    _unmanned_since: float = 0.0

    def unmanned(self) -> tuple[NotPossibleError, float] | None:
        """Return that tasks wait, and no worker has joined or is started, and since when;
        None: that is not so.
        """
        if self.crew is not None or self._pool.agents or not any(self._work().values()):
            self._unmanned_since = 0.0
            return None
        self._unmanned_since = self._unmanned_since or time.time()
        why = "no worker has joined, and [pool] processes is 0"
        fix = "`batchd invite NODE | ssh NODE batchd worker --join -`"
        return NotPossibleError(f"{why}: {fix}"), self._unmanned_since


def joining(
    current: CurrentConfig,
    pool: Supervisor,
    work: Callable[[], Mapping[Needs, int]],
    broke: Callable[[BaseException], None],
) -> WorkerAdmission | None:
    """Return what it takes; None: none may join.

    ``work``: how many tasks are at work, or could be, by what they need.

    ``broke``: takes a bug, which ends the daemon. Raises ``NotPossibleError``.
    """
    config = current.config
    place = address(config.pool.listen)
    if place is None:
        return None
    if not config.workspace.shared:
        packs.library()
    known, invitations = identity(Path(config.paths.state)), Invitations()
    tickets = TicketMaker(invitations, address(config.pool.advertise) or place, known.fingerprint)
    # Where directories are shared, what a lost node works on may change until its lease is over.
    lease_s = config.pool.heartbeat_timeout_s
    fence_s = lease_s + MARGIN_S if config.workspace.shared else 0.0
    gate = WorkerListener(place, known, invitations, PoolEntry(pool, lease_s, fence_s, broke))
    crew = (
        Crew(partial(_terms, current), pool, tickets, work) if config.pool.engine == "ray" else None
    )
    return WorkerAdmission(gate, tickets, crew, pool, work)


def _terms(current: CurrentConfig) -> CrewTerms:
    config = current.config
    ray = config.ray
    environ = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    if ray.token_file:
        environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": ray.token_file}
    return CrewTerms(
        address=ray.address,
        least=min(ray.min_processes, config.pool.processes),
        most=config.pool.processes,
        agents_per_process=config.pool.agents_per_process,
        takes=Takes(ray.cpus_per_process, ray.memory_mb_per_process << 20),
        environ=environ,
    )


@dataclass(slots=True, eq=False, repr=False)
class PoolEntry:
    """Takes workers that are let in to the pool."""

    _pool: Supervisor
    #: How long each may go on after a heartbeat: as the daemon began, whatever it is reloaded with.
    _lease_s: float
    #: How long after the last word of a worker what it works on may still change.
    _fence_s: float
    _broke: Callable[[BaseException], None]
    #: Those that are in the pool, by the digest of the word that ends them.
    _lives: WeakValueDictionary[str, RemoteWorker] = field(default_factory=WeakValueDictionary)

    def problem(self, join: wire.Join, address: str) -> str:
        """Return that another machine's worker has the name:
        who has a ticket must not speak for that.
        """
        for life in self._lives.values():
            if life.node == join.node and life.address != address and not life.over:
                why = f"the name {join.node} is in use by a worker from {life.address}, and it comes from {address}"
                return f"{why}: choose another with --node"
        return ""

    def admit(
        self, transport: asyncio.Transport, join: wire.Join, address: str, badge: int
    ) -> None:
        """Take a worker in."""
        life = RemoteWorker(
            transport,
            join.node,
            join.pid,
            address=address,
            badge=badge,
            has=Has(join.gpus, join.labels),
            lease_s=self._lease_s,
            fence_s=self._fence_s,
        )
        self._lives[join.parting] = life
        self._pool.admit(life)

    def broke(self, error: BaseException) -> None:
        """End the daemon with a bug."""
        self._broke(error)

    def ended(self, parting: str, *, died: bool) -> None:
        """Take a keeper's word that a worker has ended: what it had is free at once."""
        life = self._lives.get(digest(parting))
        if life is not None:
            life.gone(died=died)
