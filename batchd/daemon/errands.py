"""Errands: the batches that a daemon works on for ``run`` alone, and who waits for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from batchd.control import Detach, Detached, Submit, Submitted
from batchd.control.socket_server import Requester
from batchd.daemon import main_loop
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.intake import Intake
from batchd.daemon.writes import DaemonStore
from batchd.errors import NotPossibleError, UsageError, WithdrawnError
from batchd.lifecycle import Lifecycle, inputs
from batchd.records import Batch, Cause, HoldKey, Scope
from batchd.spool import claims
from batchd.store import lookups

#: The time between two looks, in seconds.
_LOOK_S = 0.3
#: Looks after which a daemon ends that no one has given anything to do.
_MOST_LOOKS = 30
_MESSAGE = "its `batchd run` has ended; another one of the same file goes on with it, and so does `batchd serve`"


@dataclass(slots=True, eq=False, repr=False)
class Errands:
    """Takes up what a ``run`` hands over, and gives it up once no one waits for it any more: it
    costs money.
    """

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _batches: OpenBatches
    _attempts: Attempts
    _intake: Intake
    #: Takes one batch of an earlier daemon's up, unless that is done, with the claims whose files
    #: are still to be moved.
    _take_up: Callable[[str, AbstractSet[str]], None]
    #: Of two orders for one file at once, the second finds the batch of the first.
    _runs: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    #: By batch: who has asked for it.
    _givers: dict[str, list[Requester]] = field(default_factory=dict)
    #: Those that go on without them.
    _detached: set[str] = field(default_factory=set)
    #: How many are being taken up.
    _expected: int = 0
    #: Nothing is taken up any more: the daemon ends.
    ended: bool = False

    async def submit(self, order: Submit, by: Requester) -> Submitted:
        """Take up a claimed file, or a batch that is half-finished; answer once it is durable."""
        if bool(order.claim) == bool(order.batch):
            raise UsageError("it needs a claim, or a batch")
        if self.ended:
            return Submitted(batch="", tasks=0)
        again = False
        self._expected += 1  # the daemon does not end meanwhile
        try:
            if order.batch:
                self._go_on(batch := self._store.read(lookups.find_batch, order.batch), order)
            else:
                async with self._runs.setdefault(order.run or order.claim, asyncio.Lock()):
                    batch, again = await self._claimed(order, by)
            self._givers.setdefault(batch.name, []).append(by)
            if self._lifecycle.lift(_given_up(batch.name)):
                main_loop.wake()
        finally:
            self._expected -= 1
        tasks = len(self._store.read(lookups.tasks, batch.name))
        return Submitted(batch=batch.name, tasks=tasks, again=again)

    def detach(self, order: Detach) -> Detached:
        """Let a batch go on without those who asked for it."""
        self._detached.add(self._store.read(lookups.find_batch, order.batch).name)
        return Detached(batch=order.batch)

    async def _claimed(self, order: Submit, by: Requester) -> tuple[Batch, bool]:
        """Return the batch of a claimed file, and whether another ``run`` of it began that."""
        claim = claims.find(Path(self._current.config.paths.state), order.claim)
        if known := self._store.read(lookups.claimed, order.claim):
            self._go_on(known, order)
            return known, False
        if claim is None:
            raise UsageError(f"no file lies claimed under {order.claim!a}")
        if order.run and (begun := self._store.read(lookups.unended_run, order.run)):
            self._go_on(begun, order)
            claim.path.unlink(missing_ok=True)
            return begun, True
        await self._batches.try_out(self._current.config.paths.outbox)
        batch = await self._intake.stored(claim, order, by.insist)
        if batch is None:
            raise UsageError(f"{claim.name} was taken away before it was read")
        main_loop.spawn(self._intake.bring(claim, batch))
        return batch, False

    def _go_on(self, batch: Batch, order: Submit) -> None:
        """Take a batch up that is stored, unless it is worked on or published.

        Raises ``NotPossibleError`` where it has to wait, or was begun otherwise.
        """
        name, paths = batch.name, self._current.config.paths
        if self._lifecycle.holds.keeps(HoldKey(Scope.BATCH, name, Cause.PAUSED)):
            raise NotPossibleError(f"{name} is paused: batchd resume {name}")
        otherwise = ""
        if order.parallel and batch.parallel != order.parallel:
            otherwise = "was not started with --serial: leave that out"
        elif batch.outbox != paths.outbox:
            otherwise = (
                f"its results lie in {batch.outbox}, not in {paths.outbox}: run it as before, with "
                "that as [paths] outbox"
            )
        if otherwise:
            raise NotPossibleError(
                f"{name} is half-finished, and {otherwise}, or end it and begin again: "
                f"batchd cancel {name}"
            )
        for earlier in batch.after_batches:
            if self._batches.get(earlier) is None and self._store.read(lookups.unfinished, earlier):
                raise NotPossibleError(
                    f"{name} comes after {earlier}, which has tasks left, and a `batchd run` works "
                    "on its own files alone: `batchd serve` works on both"
                )
        claim = claims.find(Path(paths.state), batch.claim)
        self._take_up(name, {claim.ulid} if claim else set())
        if claim:
            main_loop.spawn(self._intake.bring(claim, batch))

    async def over(self) -> None:
        """Return once all of it is done, or no one waits for what is left."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            looks += 1
            left = [batch.name for batch in self._batches]
            wanted = [name for name in left if self.wanted(name)]
            if not wanted and not self._expected and (self._givers or looks > _MOST_LOOKS):
                self.ended = True
                return
            for name in {*left} - {*wanted}:
                self._give_up(name)

    def wanted(self, name: str) -> bool:
        """Return whether somebody waits for a batch, or has it go on without them."""
        givers = self._givers.get(name)
        if givers is None:
            # What an order has begun, as `retry`, is no errand,
            # and comes to its end, unless people pause it.
            return not self._lifecycle.holds.keeps(HoldKey(Scope.BATCH, name, Cause.PAUSED))
        return name in self._detached or any(map(_present, givers))

    def _give_up(self, name: str) -> None:
        """Begin no more of a batch, and have what runs give its slot back."""
        hold = _given_up(name)
        if self._lifecycle.holds.keeps(hold):
            return
        for ref in self._lifecycle.of(name):
            self._lifecycle.take(inputs.Held(ref, hold))
            if self._attempts.get(ref) is not None:
                self._attempts.halt(ref, _MESSAGE)


def _given_up(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch that no one waits for."""
    return HoldKey(Scope.BATCH, batch, Cause.LEFT)


def _present(giver: Requester) -> bool:
    try:
        giver.insist()
    except WithdrawnError:
        return False
    return True
