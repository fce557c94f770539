"""The assembly of a daemon: each part gets what it needs, and nothing is linked later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd.children import Children
from batchd.config import Config
from batchd.daemon import tuning
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.bases import Bases
from batchd.daemon.attempts.calls import Calls
from batchd.daemon.attempts.fences import Fences
from batchd.daemon.attempts.lessons import Lessons
from batchd.daemon.attempts.reports import Reports
from batchd.daemon.attempts.scratch_cleanup import ScratchCleanup
from batchd.daemon.attempts.starting import AttemptStarter
from batchd.daemon.attempts.suspects import Suspects
from batchd.daemon.attempts.turns import Turns
from batchd.daemon.commands import CommandHandlers, EndWaiters
from batchd.daemon.commands.cancel import CancelHandler
from batchd.daemon.commands.check import CheckHandler, HostCheck
from batchd.daemon.commands.pause import PauseHandler
from batchd.daemon.commands.priority import PriorityHandler
from batchd.daemon.commands.prune import PruneHandler
from batchd.daemon.commands.retry import RetryHandler
from batchd.daemon.commands.status import StatusHandler
from batchd.daemon.commands.submit import SubmitHandler
from batchd.daemon.commands.tune import TuneHandler
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.ends.rooms import Rooms
from batchd.daemon.intake.batch_names import BatchNames
from batchd.daemon.intake.errands import Errands
from batchd.daemon.intake.intake import Intake
from batchd.daemon.intake.parser import Parser
from batchd.daemon.intake.recovery import Recovery
from batchd.daemon.listeners import Finisher, Listener
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.reloading import Reloader
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.waits.circuits import Circuits
from batchd.daemon.waits.concurrency import Concurrency
from batchd.daemon.waits.money_waits import FirstCalls, MoneyWaits
from batchd.daemon.waits.offers import Offers
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.daemon.waits.placing import Placing
from batchd.daemon.waits.predecessors import Predecessors
from batchd.daemon.writes import Register, Writes
from batchd.governor import Governor
from batchd.governor.news import News
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.trials import Trials
from batchd.log import get_logger
from batchd.pool.disks import AllDiskThreads
from batchd.pool.engines.cluster import Cluster
from batchd.pool.engines.local import LocalEngine
from batchd.pool.shape import PoolShape
from batchd.pool.supervisor import Supervisor
from batchd.pricing import Prices
from batchd.spool import claims
from batchd.spool.outbox import OwnOutboxes
from batchd.store import Store, lookups


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that the daemon itself begins, asks and ends."""

    loop: MainLoop
    current: CurrentConfig
    lifecycle: Lifecycle
    store: Store
    writes: Writes
    outboxes: Outboxes
    troubles: TroubleLog
    governor: Governor
    batches: OpenBatches
    publisher: Publisher
    lot: ParkingLot
    circuits: Circuits
    pool: Supervisor
    #: Has workers on a Ray cluster; None: there is none.
    cluster: Cluster | None
    attempts: Attempts
    reports: Reports
    turns: Turns
    reloader: Reloader
    desk: StatusHandler
    intake: Intake
    restoring: Recovery
    errands: Errands
    commands: CommandHandlers


def joined(
    config: Config,
    store: Store,
    disks: AllDiskThreads,
    listeners: list[Listener],
    finishers: Sequence[Finisher],
    *,
    parser: Parser,
    fetchers: Children,
    held: int,
    watching: bool,
    agent: str,
    ends: EndWaiters,
    reload: Callable[[], Config] | None,
    look: HostCheck | None,
    shape: Callable[[Config], PoolShape],
) -> Parts:
    """Return the parts, each made of those before it; nothing runs yet.

    ``held``: the spool's lock, which workers hold too. ``watching``: whether it takes what is
    dropped. ``agent``: what works on a task. ``ends``: who waits for what has ended. ``reload``:
    reads the configuration. ``look``: what ``check`` looks with. ``shape``: of the pool.
    """
    # What all of them stand on.
    state = Path(config.paths.state)
    loop, current, lifecycle = MainLoop(), CurrentConfig(config, Prices(config.models)), Lifecycle()
    troubles = TroubleLog(get_logger(), ended=loop.wake)
    writes, outboxes = (
        Writes(store, troubles),
        Outboxes(disks, troubles, OwnOutboxes(state, claims.mark(state))),
    )
    endpoints, missing = tuning.endpoints(config)
    news: asyncio.Queue[News] = asyncio.Queue()
    governor = Governor(
        config,
        missing,
        news.put_nowait,
        booked=lambda day: store.read(lookups.day_money, day).total,
    )

    # Batches and results.
    names = BatchNames(loop, store, outboxes)
    batches = OpenBatches(
        loop,
        current,
        lifecycle,
        store,
        writes,
        outboxes,
        governor,
        listeners,
        names,
        finishers,
    )
    publisher = Publisher(
        loop, current, lifecycle, store, writes, outboxes, listeners, finishers, batches
    )
    rooms = Rooms(loop, lifecycle, outboxes, current, troubles, batches)
    scratch = ScratchCleanup(loop, current)
    bases = Bases(loop, current, lifecycle, publisher, outboxes, fetchers)
    intake = Intake(loop, current, store, outboxes, batches, parser)

    # The pool, and attempts at tasks.
    settings = tuning.settings(config, endpoints)
    engine = LocalEngine(held, agent, Path(config.paths.state, "pool"))
    pool = Supervisor(shape(config), settings, engine)
    reloader = Reloader(loop, current, governor, listeners, pool, outboxes, reload, shape)
    lessons = Lessons(loop, current, store, writes)
    calls = Calls(loop, lifecycle, store, writes, governor, listeners, lessons)
    fences = Fences(store)
    attempts = Attempts(
        loop,
        current,
        lifecycle,
        store,
        writes,
        outboxes,
        governor,
        listeners,
        batches,
        publisher,
        rooms,
        bases,
        calls,
        AttemptStarter(current, store, governor, lessons),
        fences,
        pool,
    )
    placing = Placing(lifecycle, pool)
    cluster = None
    if watching and config.pool.engine == "ray":
        count = partial(_work, loop, lifecycle, attempts)
        cluster = Cluster(partial(tuning.cluster, current), pool, count)
    reports = Reports(loop, listeners, outboxes, batches, rooms, attempts, calls)

    # What waits, and whose turn it is.
    register = Register(lifecycle, store, writes)
    offers = Offers(current)
    lot = ParkingLot(
        loop,
        lifecycle,
        store,
        writes,
        governor,
        listeners,
        batches,
        attempts,
        register,
        Trials(lifecycle),
        MoneyWaits(loop, lifecycle, governor, listeners, register, FirstCalls(current, store)),
        Concurrency(lifecycle, batches, attempts),
        placing,
        reloader.again,
    )
    circuits = Circuits(
        loop, lifecycle, governor, listeners, lot, publisher, offers, news, reloader.again
    )
    suspects = Suspects(lifecycle, governor, attempts, pool)
    turns = Turns(loop, lifecycle, governor, lot, circuits, rooms, attempts, suspects)
    predecessors = Predecessors(loop, lifecycle, store, batches, publisher)
    listeners += [scratch, bases, lot, predecessors]

    # What people ask for.
    desk = StatusHandler(
        loop,
        current,
        lifecycle,
        troubles,
        governor,
        batches,
        attempts,
        pool,
        bases,
        Path(config.paths.state, "batchd.db"),
        watching,
        "" if watching else config.conditions(),
    )
    cancelling = CancelHandler(lifecycle, store, writes, publisher, attempts, ends)
    rerun = RetryHandler(
        loop,
        current,
        lifecycle,
        store,
        writes,
        outboxes,
        batches,
        names,
        cancelling.cancel_held,
    )
    restoring = Recovery(
        loop, store, lessons, fences, rerun, batches, publisher, lot, scratch, predecessors
    )
    errands = Errands(loop, lifecycle, batches, attempts)
    commands = CommandHandlers(
        writes,
        desk,
        cancelling,
        PauseHandler(current, lifecycle, store, batches, lot, circuits),
        PriorityHandler(loop, lifecycle, store, writes),
        rerun,
        PruneHandler(store, writes, outboxes, bases),
        TuneHandler(reloader),
        SubmitHandler(
            loop, lifecycle, current, store, writes, outboxes, batches, intake, restoring, errands
        ),
        CheckHandler(current, lifecycle, troubles, reloader, look),
    )
    return Parts(
        loop=loop,
        current=current,
        lifecycle=lifecycle,
        store=store,
        writes=writes,
        outboxes=outboxes,
        troubles=troubles,
        governor=governor,
        batches=batches,
        publisher=publisher,
        lot=lot,
        circuits=circuits,
        pool=pool,
        cluster=cluster,
        attempts=attempts,
        reports=reports,
        turns=turns,
        reloader=reloader,
        desk=desk,
        intake=intake,
        restoring=restoring,
        errands=errands,
        commands=commands,
    )


def _work(loop: MainLoop, lifecycle: Lifecycle, attempts: Attempts) -> int:
    """Return how many tasks are at work, or could be."""
    return 0 if loop.closing else len(attempts.active) + lifecycle.startable
