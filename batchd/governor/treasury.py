"""Money: what may still be spent, by task, by batch and by day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from batchd.errors import StoreError
from batchd.governor.provider_queue import WantedCall
from batchd.records import Ref

_DAY_S = 86400.0
#: Sums of floats leave a rest, which must not pass for a call under way:
#: others would wait for its end.
_NOTHING = 1e-9


@dataclass(slots=True)
class Purse:
    """The money of a task, a batch or a day. What may have been paid counts as spent."""

    #: For people: ``the task's limit``.
    name: str
    #: 0: none.
    limit: float
    spent: float = 0.0
    #: Set aside for calls under way.
    reserved: float = 0.0

    def holds(self, amount: float, caution: float = 1.0) -> bool:
        """Whether ``amount`` can be set aside now.

        ``caution``: it and all that is set aside may come to so many times what is expected. Then a
        call goes all the same where none is under way: somebody must find out.
        """
        if self.reserved:
            amount = (self.reserved + amount) * caution
        return not self.limit or self.spent + amount <= self.limit

    def could_hold(self, amount: float) -> bool:
        """Whether it could be, were nothing under way: then it is worth waiting."""
        return not self.limit or self.spent + amount <= self.limit


class Treasury:
    """The treasury: all purses.

    A call's money is set aside in three of them, and settled in the same ones.
    """

    def __init__(
        self,
        per_day_usd: float,
        clock: Callable[[], float],
        booked: Callable[[int], float] = lambda _day: 0.0,
    ) -> None:
        """``booked``: returns what the store has for a day, in days since 1970-01-01 in UTC;
        may raise ``StoreError``.
        """
        self._clock = clock
        self._booked = booked
        self._today = self._date()
        self._day = Purse("the day's budget", per_day_usd, booked(self._today))
        #: What was spent on other days while this runs: not all of it may be in the store yet.
        self._days: dict[int, float] = {}
        self._batches: dict[str, Purse] = {}
        self._tasks: dict[Ref, Purse] = {}
        #: The largest budget that a day has had so far:
        #: one that is lowered stops tasks, and ends none.
        self.largest_day = per_day_usd or inf
        #: The calls of tasks for which the day had too little.
        self.wanted: dict[Ref, WantedCall] = {}

    def open_batch(self, name: str, budget_usd: float, spent: float) -> None:
        """Take up a batch that has spent ``spent`` so far."""
        self._batches[name] = Purse("the batch's budget", budget_usd, spent)

    def close_batch(self, name: str) -> None:
        """Forget a batch that has ended."""
        self._batches.pop(name, None)

    def open_task(self, ref: Ref, max_cost_usd: float, spent: float) -> None:
        """Take up a task that has spent ``spent`` so far."""
        self._tasks[ref] = Purse("the task's limit", max_cost_usd, spent)

    def close_task(self, ref: Ref) -> None:
        """Forget a task that no worker has."""
        self._tasks.pop(ref, None)

    def limit_day(self, per_day_usd: float) -> None:
        """Change the day's budget."""
        self._day.limit = per_day_usd
        self.largest_day = max(self.largest_day, per_day_usd or inf)

    def is_day(self, purse: Purse) -> bool:
        """Whether a purse is the day's."""
        return purse is self._day

    def is_batch(self, purse: Purse, batch: str) -> bool:
        """Whether a purse is this batch's."""
        return purse is self._batches.get(batch)

    def today(self) -> tuple[int, float]:
        """Return the day, as days since 1970-01-01 in UTC, and its budget:
        money is back when either changes.
        """
        self._turn_page()
        return self._today, self._day.limit

    def day(self) -> Purse:
        """Return the day's purse."""
        self._turn_page()
        return self._day

    def figures(self) -> dict[str, float]:
        """Return what `status` shows of the day, in dollars; a limit of 0: there is none."""
        self._turn_page()
        day = self._day
        return {"limit_usd": day.limit, "spent_usd": day.spent, "reserved_usd": day.reserved}

    def purses(self, ref: Ref) -> list[Purse]:
        """Return the purses that a call of this task draws on."""
        self._turn_page()
        own = (self._tasks.get(ref), self._batches.get(ref.batch), self._day)
        return [purse for purse in own if purse is not None]

    def settle(self, ref: Ref, reserved: float, spent: float) -> None:
        """Turn what was set aside for a call into what it cost."""
        for purse in self.purses(ref):
            rest = purse.reserved - reserved
            purse.reserved = rest if rest > _NOTHING else 0.0
            purse.spent += spent

    def _turn_page(self) -> None:
        """Take up another day where it is one: with what was spent on it before,
        by any daemon, and whatever the clock said.
        """
        if self._today == (today := self._date()):
            return
        try:
            booked = self._booked(today)
        except StoreError:
            return  # tried again at the next call, which this day pays for until then
        self._days[self._today] = self._day.spent
        self._today, self._day.spent = today, max(booked, self._days.pop(today, 0.0))

    def _date(self) -> int:
        return int(self._clock() // _DAY_S)
