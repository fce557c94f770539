"""What is to be done when, and what lasts meanwhile."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable, Collection

from progress import Hindrance, Journal

#: How long most things last, in seconds.
_LASTS_S = (1.0, 3.0, 6.0, 12.0, 25.0)


class Timetable:
    """Has things done later, and writes into the journal what lasts until then."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.rng = random.Random(0)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        #: What is taken, each with a number of its own for every time.
        self._taken: dict[str, int] = {}

    @property
    def waiting(self) -> bool:
        """Whether anything is still to be done."""
        return bool(self._later)

    def note(self, text: str) -> None:
        """Write down what happens in this instant."""
        self.journal.note(time.monotonic(), text)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), do))

    def lasting(
        self,
        what: str,
        end: Callable[[], None],
        seconds: float = 0.0,
        *,
        lanes: Collection[str] | None = None,
        batches: Collection[str] | None = None,
        felt_s: float = 0.0,
    ) -> None:
        """Write down that something lasts, and have it ended later; 0 seconds: some."""
        now = time.monotonic()
        hindrance = self.journal.begin(Hindrance(what, now, lanes, batches, felt_s=felt_s))

        def over() -> None:
            end()
            self.journal.end(hindrance, time.monotonic())

        self.after(seconds or self.rng.choice(_LASTS_S), over)

    def take(self, *things: str) -> bool:
        """Take what only one strike at a time may change; whether all of it was free."""
        if self._taken.keys() & {*things}:
            return False
        self._taken |= dict.fromkeys(things, next(self._numbers))
        return True

    def holder(self, thing: str) -> int | None:
        """Return which taking of a thing lasts; None where it is free."""
        return self._taken.get(thing)

    def give_back(self, *things: str) -> None:
        """Let others change it."""
        for thing in things:
            del self._taken[thing]

    def look(self, now: float) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def hurry(self) -> None:
        """Do at once all that is still to be done."""
        while self._later:
            heapq.heappop(self._later)[2]()
