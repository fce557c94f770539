"""Errands: the batches that a daemon works on for ``run`` alone, and who waits for each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from batchd.control.requester import Requester
from batchd.daemon import main_loop
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.ends.batches import OpenBatches
from batchd.errors import WithdrawnError
from batchd.lifecycle import Lifecycle, inputs
from batchd.records import Cause, HoldKey, Scope

#: The time between two looks, in seconds.
_LOOK_S = 0.3
#: Looks after which a daemon ends that no one has given anything to do.
_MOST_LOOKS = 30
_MESSAGE = "its `batchd run` has ended; another one of the same file goes on with it, and so does `batchd serve`"


@dataclass(slots=True, eq=False, repr=False)
class Errands:
    """Gives up batches that no one waits for any more: they cost money."""

    _lifecycle: Lifecycle
    _batches: OpenBatches
    _attempts: Attempts
    #: By batch: who has asked for it.
    _givers: dict[str, list[Requester]] = field(default_factory=dict)
    #: Those that go on without them.
    _detached: set[str] = field(default_factory=set)
    #: How many are being taken up.
    _expected: int = 0
    #: Nothing is taken up any more: the daemon ends.
    ended: bool = False

    def add(self, batch: str, by: Requester) -> None:
        """Note who waits for a batch, which goes on if it was given up."""
        self._givers.setdefault(batch, []).append(by)
        if self._lifecycle.lift(_given_up(batch)):
            main_loop.wake()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Keep the daemon from ending while something is taken up."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    def detach(self, batch: str) -> None:
        """Let a batch go on where no one waits for it."""
        self._detached.add(batch)

    async def over(self) -> None:
        """Return once all of it is done, or no one waits for what is left."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            looks += 1
            left = self._batches.names
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
