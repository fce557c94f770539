"""What a daemon is made of: each part gets what it needs, and nothing is linked later."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd.config import Config
from batchd.daemon import tuning
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.bases import Bases
from batchd.daemon.attempts.calls import Calls
from batchd.daemon.attempts.chainbook import ChainBook
from batchd.daemon.attempts.chains import Chains
from batchd.daemon.attempts.fences import Fences
from batchd.daemon.attempts.lessons import Lessons
from batchd.daemon.attempts.porter import Porter
from batchd.daemon.attempts.reports import Reports
from batchd.daemon.attempts.scratch import Scratch
from batchd.daemon.attempts.starting import Starting
from batchd.daemon.attempts.suspects import Suspects
from batchd.daemon.attempts.turns import Turns
from batchd.daemon.commands import Commands, Ends
from batchd.daemon.commands.cancel import Cancelling
from batchd.daemon.commands.check import Checking, Look
from batchd.daemon.commands.invite import Inviting
from batchd.daemon.commands.pause import Pausing
from batchd.daemon.commands.priority import Prioritising
from batchd.daemon.commands.prune import Pruning
from batchd.daemon.commands.retry import Rerun
from batchd.daemon.commands.rows import Rows
from batchd.daemon.commands.status import FrontDesk
from batchd.daemon.commands.submit import Submitting
from batchd.daemon.commands.tune import Tuning
from batchd.daemon.current import Current
from batchd.daemon.ends.batches import Batches
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.ends.rooms import Rooms
from batchd.daemon.finisher import Finisher
from batchd.daemon.intake.errands import Errands
from batchd.daemon.intake.intake import Intake
from batchd.daemon.intake.names import Names
from batchd.daemon.intake.parsers import Parsers
from batchd.daemon.intake.restoring import Restoring
from batchd.daemon.joining import Joining, joining
from batchd.daemon.listener import Listeners
from batchd.daemon.loop import Loop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.reloading import Reloader
from batchd.daemon.troubles import Troubles
from batchd.daemon.waits.circuits import Circuits
from batchd.daemon.waits.concurrency import Concurrency
from batchd.daemon.waits.firstcalls import FirstCalls
from batchd.daemon.waits.offers import Offers
from batchd.daemon.waits.parking import ParkingLot
from batchd.daemon.waits.placing import Placing
from batchd.daemon.waits.predecessors import Predecessors
from batchd.daemon.waits.register import Register
from batchd.daemon.waits.retiring import Retiring
from batchd.daemon.waits.roomless import Roomless
from batchd.daemon.waits.shortage import Shortage
from batchd.daemon.writes import Writes
from batchd.governor import Governor
from batchd.governor.news import News
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.trials import Trials
from batchd.log import get_logger
from batchd.pool.disks import Disks
from batchd.pool.engines.local import Local
from batchd.pool.shape import Shape
from batchd.pool.supervisor import Supervisor
from batchd.pricing import Prices
from batchd.records import Needs
from batchd.records.needs import NOTHING
from batchd.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """Those that the daemon itself begins, asks and ends."""

    loop: Loop
    current: Current
    lifecycle: Lifecycle
    store: Store
    writes: Writes
    outboxes: Outboxes
    troubles: Troubles
    governor: Governor
    batches: Batches
    publisher: Publisher
    lot: ParkingLot
    circuits: Circuits
    pool: Supervisor
    #: For workers of other machines; None: none may join.
    others: Joining | None
    attempts: Attempts
    reports: Reports
    turns: Turns
    reloader: Reloader
    desk: FrontDesk
    intake: Intake
    restoring: Restoring
    errands: Errands
    commands: Commands
    retiring: Retiring


def joined(
    config: Config,
    store: Store,
    disks: Disks,
    listeners: Listeners,
    finishers: Sequence[Finisher],
    *,
    parsers: Parsers,
    held: int,
    watching: bool,
    agent: str,
    ends: Ends,
    reload: Callable[[], Config] | None,
    look: Look | None,
    shape: Callable[[Config], Shape],
) -> Parts:
    """Return the parts, each made of those before it; nothing runs yet.

    ``held``: the spool's lock, which workers hold too. ``watching``: whether it takes what is dropped. ``agent``: what works
    on a task. ``ends``: who waits for what has ended. ``reload``: reads the configuration. ``look``: what ``check`` looks
    with. ``shape``: of the pool.
    """
    # What all of them stand on.
    loop, current, lifecycle = Loop(), Current(config, Prices(config.models)), Lifecycle()
    troubles = Troubles(get_logger(), ended=loop.wake)
    writes, outboxes = Writes(store, troubles), Outboxes(disks, troubles)
    endpoints, missing = tuning.endpoints(config)
    news: asyncio.Queue[News] = asyncio.Queue()
    governor = Governor(config, missing, news.put_nowait, booked=store.spent_on)

    # Batches and results.
    names = Names(loop, store, outboxes)
    batches = Batches(
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
    book = ChainBook(current)
    chains, porter = Chains(loop, current, outboxes, book), Porter(loop, current, book)
    publisher = Publisher(
        loop, current, lifecycle, store, writes, outboxes, listeners, finishers, batches, chains
    )
    rooms = Rooms(loop, lifecycle, outboxes, troubles, batches)
    scratch = Scratch(loop, current)
    bases = Bases(loop, current, lifecycle, writes, publisher)
    intake = Intake(loop, current, store, outboxes, batches, parsers)

    # The pool, and attempts at tasks.
    settings = tuning.settings(config, endpoints)
    engine = Local(held, agent, Path(config.paths.state, "pool"))
    pool = Supervisor(shape(config), settings, engine)
    reloader = Reloader(loop, current, governor, listeners, pool, reload, shape)
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
        chains,
        calls,
        Starting(current, store, governor, lessons),
        fences,
        pool,
    )
    manual = not watching or config.pool.engine == "local"
    placing = Placing(lifecycle, pool, manual)
    others = (
        joining(current, pool, partial(_work, loop, lifecycle, attempts, placing), loop.broke)
        if watching
        else None
    )
    reports = Reports(loop, listeners, outboxes, batches, attempts, calls, porter)

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
        Roomless(loop, lifecycle, store, governor, register),
        Shortage(loop, lifecycle, governor, listeners, register, FirstCalls(current, store)),
        Concurrency(lifecycle, batches, attempts),
        placing,
        reloader.again,
    )
    circuits = Circuits(
        loop, lifecycle, writes, governor, listeners, lot, publisher, offers, news, reloader.again
    )
    suspects = Suspects(lifecycle, governor, attempts, pool)
    turns = Turns(loop, lifecycle, governor, lot, circuits, rooms, attempts, suspects)
    retiring = Retiring(loop, current, lifecycle, store, writes, listeners, offers)
    predecessors = Predecessors(loop, lifecycle, store, writes, batches, publisher)
    for each in (scratch, bases, chains, porter, retiring, lot, predecessors):
        listeners.add(each)

    # What people ask for.
    desk = FrontDesk(
        loop,
        current,
        lifecycle,
        troubles,
        governor,
        batches,
        attempts,
        pool,
        retiring,
        bases,
        Rows(Path(config.paths.state, "batchd.db")),
        watching,
        "" if watching else config.conditions(),
    )
    cancelling = Cancelling(lifecycle, store, writes, publisher, attempts, ends)
    rerun = Rerun(
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
    restoring = Restoring(
        loop, store, lessons, fences, rerun, batches, publisher, lot, scratch, chains, predecessors
    )
    errands = Errands(loop, lifecycle, batches, attempts)
    commands = Commands(
        writes,
        desk,
        cancelling,
        Pausing(current, lifecycle, store, batches, lot, circuits),
        Prioritising(loop, lifecycle, store, writes),
        rerun,
        Pruning(store, writes, outboxes, bases, chains),
        Tuning(reloader),
        Submitting(loop, current, store, writes, outboxes, batches, intake, restoring, errands),
        Checking(current, lifecycle, troubles, reloader, governor, lessons, look),
        Inviting(others.tickets if others else None),
        Path(config.paths.state),
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
        others=others,
        attempts=attempts,
        reports=reports,
        turns=turns,
        reloader=reloader,
        desk=desk,
        intake=intake,
        restoring=restoring,
        errands=errands,
        commands=commands,
        retiring=retiring,
    )


def _work(
    loop: Loop, lifecycle: Lifecycle, attempts: Attempts, placing: Placing
) -> Mapping[Needs, int]:
    """Return how many tasks are at work, or could be, by what they need of their machine."""
    if loop.closing:
        return {}
    demand = Counter(each.needs for each in attempts.active)
    demand.update(placing.demand())
    demand[NOTHING] += max(0, lifecycle.startable - sum(lifecycle.needy.values()))
    return demand
