"""Money: what may still be spent, by task, by batch and by day,
and what a call may cost at most, corrected by what the model's calls came to.

A provider's tokens need not be ours, it may put a prompt of its own before each request, and not
every model keeps to the limit on its output.
What is set aside for a call must be enough all the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from batchd.errors import NotPossibleError, StoreError
from batchd.governor.provider_queue import WantedCall
from batchd.records import STANDARD, Price, Ref, Usage, believable, dearest

#: In shorter requests and answers, what a provider adds to each weighs more than how it counts.
_MIN_TOKENS_FOR_RATIO = 1000
#: What a model's calls may come to, as a multiple, while none of them has been answered. A hidden
#: prompt of 5,000 tokens before a short question is seven times what was expected of it.
_UNKNOWN = 10.0
#: So many of a model's last answers say what its next calls may come to.
_LAST = 20
#: So many of them must have come to as much before a task ends for it: a single one may be wrong.
PROOF = 2
#: Output beyond so many times its limit is no matter of how tokens are counted.
_OVERLONG = 1.5


def _lately() -> deque[float]:
    return deque(maxlen=_LAST)


@dataclass(frozen=True, slots=True)
class _Beyond:
    """How far a model's last answers went beyond our estimates."""

    #: Times the input of long requests, …
    factors: deque[float] = field(default_factory=_lately)
    #: … tokens on top of short ones, …
    extras: deque[float] = field(default_factory=_lately)
    #: … and times the limit on output.
    outputs: deque[float] = field(default_factory=_lately)


def _at_least(seen: deque[float], least: float, answers: int) -> float:
    """Return what so many of the answers came to, or more."""
    return max(least, sorted(seen)[-answers]) if len(seen) >= answers else least


class Estimates:
    """The estimates for each model, corrected by its answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._beyond: dict[str, _Beyond] = {}
        #: Models one of whose last answers was longer than its request allowed: since when.
        self._overlong: dict[str, float] = {}
        #: By model and the tier that was asked for: the others that served its calls all the same.
        self._served: dict[tuple[str, str], set[str]] = {}
        #: Models whose provider keeps what it writes to its cache for long.
        self._kept_long: set[str] = set()

    def most(self, call: WantedCall, answers: int = 1) -> float | None:
        """Return what a call may cost at most, in dollars; None where no price is known.

        ``answers``: as at least so many of the last ones did.
        """
        long = call.model in self._kept_long
        cost = dearest(self._ends(call), *self.tokens(call, answers), long=long)
        return None if cost is None else cost.total

    def _ends(self, call: WantedCall) -> list[Price | None]:
        """Return the prices at which a call may end.

        Its tier's, the standard one where it may fall back to that, and those that served such
        calls before; of one without a known price what was set aside is booked. Each at all hours
        until the call's time is over.
        """
        if call.price is None:
            return [None]
        tiers = [call.tier] if call.fallback_s is None else [call.tier, STANDARD]
        served, now = self._served.get((call.model, call.tier), ()), self._clock()
        hourly = call.price.between(now, now + call.timeout_s)
        others = [price.at(tier) for price in hourly for tier in served]
        return [*(price.at(tier) for price in hourly for tier in tiers), *filter(None, others)]

    def tokens(self, call: WantedCall, answers: int = 1) -> tuple[int, int]:
        """Return how many tokens of input and of output a call may come to,
        by the last answers; ``answers``: as at least so many of them did.
        """
        beyond, given, asked = (
            self._beyond.get(call.model, _Beyond()),
            call.input_tokens,
            call.max_output_tokens,
        )
        factor, extra = _at_least(beyond.factors, 1, answers), _at_least(beyond.extras, 0, answers)
        most = max(math.ceil(given * factor), given + int(extra))
        output = math.ceil(asked * _at_least(beyond.outputs, 1, answers))
        # What was learnt from a short request is not stretched to a long one.
        return min(most, believable(given)), min(output, believable(asked))

    def caution(self, call: WantedCall) -> float:
        """Return how many times ``most`` must be there before another call like this goes too."""
        return 1.0 if call.model in self._beyond else _UNKNOWN

    def learn(self, call: WantedCall, usage: Usage, tier: str) -> str:
        """Take what a call came to, and which tier served it.

        Return what is news to people of a model that writes more than it is asked for.
        """
        if tier != call.tier:
            self._served.setdefault((call.model, call.tier), set()).add(tier)
        if usage.cache_write_long_tokens:
            self._kept_long.add(call.model)
        beyond, given = self._beyond.setdefault(call.model, _Beyond()), call.input_tokens
        if given < _MIN_TOKENS_FOR_RATIO:
            beyond.extras.append(usage.input_tokens - given)
        else:
            beyond.factors.append(usage.input_tokens / given)
        beyond.outputs.append(usage.output_tokens / max(call.max_output_tokens, 1))
        if max(beyond.outputs) <= _OVERLONG:
            self._overlong.pop(call.model, None)
        elif call.model not in self._overlong and usage.output_tokens >= _MIN_TOKENS_FOR_RATIO:
            self._overlong[call.model] = self._clock()
            return self._words(call.model)
        return ""

    def overlong(self) -> tuple[NotPossibleError, float] | None:
        """Return what is wrong where a model writes more than it is asked for, and since when."""
        found = ((NotPossibleError(self._words(m)), at) for m, at in self._overlong.items())
        return next(found, None)

    def _words(self, model: str) -> str:
        """Return what a model does that writes more than it is asked for, and the fix."""
        times = max(self._beyond[model].outputs)
        return (
            f"an answer of {model} has {times:.1f} times the tokens that its request allows, and is booked so: "
            f"set output_limit_field in [providers.{model.partition('/')[0]}] to the field that limits them, "
            "or raise max_output_tokens"
        )


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
