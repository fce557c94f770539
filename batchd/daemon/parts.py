"""What a daemon is made of, and how the parts are joined."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from batchd.config import Config
from batchd.daemon import tuning
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import Batches
from batchd.daemon.calls import Calls
from batchd.daemon.circuits import Circuits
from batchd.daemon.commands import Commands, Ends
from batchd.daemon.core import Core
from batchd.daemon.offers import Offers
from batchd.daemon.parking import ParkingLot
from batchd.daemon.publisher import Publisher
from batchd.daemon.reloading import Reloader
from batchd.daemon.reports import Reports
from batchd.daemon.retiring import Retiring
from batchd.daemon.rooms import Rooms
from batchd.daemon.scratch import Scratch
from batchd.daemon.turns import Turns
from batchd.governor.news import News
from batchd.pool.supervisor import Shape, Supervisor
from batchd.records import Endpoint


@dataclass(frozen=True, slots=True)
class Parts:
    """The core, and all that works around it."""

    core: Core
    batches: Batches
    publisher: Publisher
    scratch: Scratch
    lot: ParkingLot
    circuits: Circuits
    pool: Supervisor
    attempts: Attempts
    reports: Reports
    turns: Turns
    reloader: Reloader
    commands: Commands
    retiring: Retiring

    def restore(self, claimed: set[str]) -> None:
        """Take up what the last daemon left; ``claimed``: the claims whose files are still to be moved."""
        # Of 100,000 queued tasks nothing is garbage: to look for it again and again takes half of the time.
        gc.disable()
        restored = self.core.store.restore()
        self.core.refused.update({(r.model, r.lesson): r for r in self.core.store.refused()})
        torn = self.commands.rerun.torn(restored.batches)
        self.batches.restore(restored, claimed | {batch.claim for batch in torn})
        self.publisher.restore(restored)
        for batch in torn:
            self.core.spawn(self.commands.rerun.bring_again(batch))
        self.lot.restore(restored.parked, restored.queued)
        self.scratch.sweep(task.ref for task in restored.queued)
        gc.freeze()
        gc.enable()


def joined(
    core: Core,
    endpoints: dict[str, Endpoint],
    *,
    held: int,
    agent: str,
    ends: Ends,
    news: asyncio.Queue[News],
    reload: Callable[[], Config] | None,
    shape: Callable[[Config], Shape],
) -> Parts:
    """Return the parts, joined to the core and to each other; nothing runs yet.

    ``endpoints``: the providers that can be asked. ``held``: the spool's lock, which workers hold too. ``agent``: what
    works on a task. ``ends``: who waits for what has ended. ``news``: what the governor reports. ``reload``: reads the
    configuration. ``shape``: of the pool.
    """
    batches = Batches(core)
    publisher = Publisher(core, batches)
    scratch = Scratch(core)
    offers = Offers(core)
    retiring = Retiring(core, offers)
    settings = tuning.settings(core.config, endpoints)
    sockets = Path(core.config.paths.state, "pool")
    pool = Supervisor(shape(core.config), settings, held, agent, folder=sockets)
    reloader = Reloader(core, pool, reload, shape)
    rooms = Rooms(core, batches)
    calls = Calls(core)
    attempts = Attempts(core, batches, publisher, calls, rooms=rooms, pool=pool)
    reports = Reports(core, attempts, calls)
    lot = ParkingLot(core, batches, attempts, read_keys=reloader.again)
    for each in (scratch, retiring, lot):
        core.listeners.add(each)
    circuits = Circuits(core, lot, publisher, offers, news=news, read_keys=reloader.again)
    turns = Turns(core, lot, circuits, rooms, attempts, pool=pool)
    commands = Commands(
        core,
        batches,
        publisher,
        attempts,
        lot,
        circuits=circuits,
        pool=pool,
        ends=ends,
        reloader=reloader,
        retiring=retiring,
    )
    return Parts(
        core=core,
        batches=batches,
        publisher=publisher,
        scratch=scratch,
        lot=lot,
        circuits=circuits,
        pool=pool,
        attempts=attempts,
        reports=reports,
        turns=turns,
        reloader=reloader,
        commands=commands,
        retiring=retiring,
    )
