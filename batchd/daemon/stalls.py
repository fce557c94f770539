"""Stalls: what could move and has not for a minute, reported instead of hidden by silence.

Nothing here is needed while every wake-up of the daemon comes: it is the net below them. Each look
lists what could move at that moment; what is on the list at every look for longer than it may be,
is a stall, which is a bug of batchd's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from batchd import cadence
from batchd.actions import Action
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.turns import Turns
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.troubles import TroubleLog
from batchd.errors import NotPossibleError
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle, Phase
from batchd.log import get_logger
from batchd.pool.supervisor import Supervisor
from batchd.records import Batch
from batchd.spool.inbox import Inbox

#: The time between two looks, and what most things may take (seconds).
_LOOK_S = 10.0
_MINUTE_S = 60.0
#: What a batch's last files may take: its report waits for those of others.
_CLOSING_S = 900.0
#: What a worker may take to come up, with the pause after one that did not.
_WORKER_UP_S = 180.0
#: How many stalls a message names.
_NAMED = 3

_FIX = (
    "restart batchd, which loses nothing; then report this bug, with the log of the minutes before"
)


@dataclass(frozen=True, slots=True)
class Movable:
    """Something that could move at the moment of a look."""

    #: What it is and how far it has come: once it moves, it is another one.
    key: Hashable
    #: ``games/001``, ``the inbox``.
    name: str
    #: What it waits for, although nothing keeps that from coming.
    state: str
    #: How long it may stay as it is, in seconds.
    may_s: float = _MINUTE_S


@dataclass(slots=True)
class _Seen:
    movable: Movable
    for_s: float = 0.0


class StallTally:
    """The record of how long each thing that could move has stayed as it is. Pure."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, _Seen] = {}

    def look(self, movables: Iterable[Movable], passed_s: float) -> list[Movable]:
        """Take what could move now, ``passed_s`` after the last look; return what has stalled.

        Only time between looks that come as they should counts: a daemon that was stopped, or a
        machine that slept, has kept nothing waiting.
        """
        passed_s = min(passed_s, 2 * _LOOK_S)
        seen: dict[Hashable, _Seen] = {}
        for movable in movables:
            known = self._seen.get(movable.key)
            seen[movable.key] = _Seen(movable, known.for_s + passed_s if known else 0.0)
        self._seen = seen
        return [each.movable for each in seen.values() if each.for_s > each.movable.may_s]


@dataclass(slots=True, eq=False, repr=False)
class Stalls:
    """The watch for stalls, for as long as the daemon runs."""

    _loop: MainLoop
    _lifecycle: Lifecycle
    _troubles: TroubleLog
    _governor: Governor
    _batches: OpenBatches
    _turns: Turns
    _attempts: Attempts
    _pool: Supervisor
    #: None where none is watched.
    _inbox: Inbox | None
    _tally: StallTally = field(default_factory=StallTally)
    #: What has stalled, and since when that is known.
    _open: tuple[NotPossibleError, float] | None = None

    def __post_init__(self) -> None:
        self._troubles.also(Action.STALLED, lambda: self._open)

    async def watch(self) -> None:
        """Look for ever."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await cadence.pause(_LOOK_S)
            now = clock()
            self.report(self._tally.look(self.movables(), now - last))
            last = now

    def report(self, stalled: list[Movable]) -> None:
        """Say what has stalled, when that begins and when it ends, and wake everything."""
        log = get_logger()
        if stalled:
            message = _said(stalled)
            if self._open is None:
                log.error(Action.STALLED, message=message, fix=_FIX, count=len(stalled))
            since = self._open[1] if self._open else time.time()
            self._open = NotPossibleError(f"{message}: {_FIX}"), since
            self._loop.wake()
        elif self._open is not None:
            log.warning(Action.STALLED, message=f"it moves again, after: {self._open[0]}")
            self._open = None

    def movables(self) -> Iterator[Movable]:
        """Yield what could move at this moment."""
        # What is in trouble is reported by itself.
        if self._loop.closing or self._troubles.stops(Action.STORE_TROUBLE):
            return
        yield from self._queued()
        yield from self._running()
        yield from self._ending()
        yield from self._dropped()

    def _queued(self) -> Iterator[Movable]:
        if ref := self._turns.startable():
            yield Movable(("queued", ref), str(ref), "queued, and a slot is free")

    def _running(self) -> Iterator[Movable]:
        in_trouble = self._troubles.stops(Action.SANDBOX_TROUBLE) or self._pool.trouble
        for active in self._attempts.active:
            if active.waiting is None and (active.task or not in_trouble):
                yield at_work(active)
        for ref in self._governor.servable():
            yield Movable(("permit", ref), str(ref), "it waits for a permit that is free")

    def _ending(self) -> Iterator[Movable]:
        ending = self._lifecycle.counts[Phase.ENDING]
        for batch, left, ended in self._batches.ending():
            if self._in_trouble(batch):
                continue
            name = batch.name
            if not left:
                yield Movable(("closing", name), name, "its summary is not written", _CLOSING_S)
            else:
                # One for a batch: that some of them end shows that the others have their turn.
                # So does an order that ends many: their results are written behind the last end.
                state = f"{ended:,} of its tasks have ended, and have no result"
                yield Movable(("ending", name, left, ending), name, state)
        working = {active.ref for active in self._attempts.active}
        entries = self._lifecycle.entries
        for ref in {r for r, e in entries.items() if e.phase.has_slot} - working:
            batch_of = self._batches.get(ref.batch)
            if batch_of is None or not self._in_trouble(batch_of):
                yield Movable(("taken", ref), str(ref), "it has a slot, and no worker works on it")

    def _in_trouble(self, batch: Batch) -> bool:
        """Whether it is known why nothing of a batch can be published."""
        troubles = self._troubles
        all_are = troubles.stops(Action.OUTBOX_TROUBLE)
        return all_are or troubles.holds(batch.outbox, batch.name)

    def _dropped(self) -> Iterator[Movable]:
        troubles = self._troubles
        known = troubles.outboxes() or troubles.stops(Action.OUTBOX_TROUBLE, Action.INBOX_TROUBLE)
        if self._inbox is not None and not self._inbox.trouble and not known:
            looked, may_s = self._inbox.looked
            yield Movable(
                ("inbox", looked), "the inbox", "batchd does not look at it", may_s + _MINUTE_S
            )


def at_work(active: ActiveAttempt) -> Movable:
    """Return a task that a worker works on: each step of it has a limit of its own."""
    limits = active.task.limits if active.task else None
    key = ("running", active.ref, active.attempt, active.step, active.since)
    if limits is None:
        may_s = _WORKER_UP_S + active.fence_s
        return Movable(key, str(active.ref), "its worker is starting", may_s)
    may_s = _MINUTE_S + active.fence_s
    if active.step == "model":
        may_s += limits.call_timeout_s
    elif active.step != "waiting":
        may_s += limits.tool_timeout_s
    return Movable(key, str(active.ref), f"its worker is silent about it ({active.step})", may_s)


def _said(stalled: list[Movable]) -> str:
    named = "; ".join(f"{each.name}: {each.state}" for each in stalled[:_NAMED])
    more = len(stalled) - _NAMED
    return named + (f"; and {more:,} more" if more > 0 else "")
