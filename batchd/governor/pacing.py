"""The shared pacing clock of one provider: when the next request may go, and how many at a time.

Pure: it is given the time, grants, answers, failures and limit headers. While nothing is configured
and nothing went wrong, it holds nothing back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from batchd.governor.bucket import SpentAmount
from batchd.governor.meter import Meter
from batchd.pauses import doubled
from batchd.records import Failure, FailureKind, RateLimit

#: Words of a 429 that is about tokens.
_TOKENS = re.compile(r"\btokens? per|\btokens? limit|\btpm\b|tokens_|max tokens", re.IGNORECASE)
#: What is waited after a 429 that does not say how long; doubled while nothing gets through.
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 60.0
#: Headers matter once less than this part of the limit remains, and until …
_PACED_BELOW = 0.15
#: … this part does.
_UNPACED_ABOVE = 0.75
#: Failures that ask for fewer requests at a time.
_CONCURRENCY_FAILURES = frozenset({FailureKind.OVERLOADED, FailureKind.TIMEOUT})
#: Failures whose Retry-After is waited out by everybody.
#: Others park the provider, or are one call's own.
_PASSING = _CONCURRENCY_FAILURES | {FailureKind.CONNECTION, FailureKind.BAD_ANSWER}


@dataclass(slots=True, eq=False)
class SentRequest:
    """A request that went."""

    at: float
    #: Counted for it in advance.
    tokens: float
    entry: SpentAmount | None


def asked_s(failure: Failure) -> float:
    """Return how long a failure asks everybody to wait, in seconds;
    0 where it says nothing of others.
    """
    everybody = failure.kind is FailureKind.RATE_LIMITED or failure.kind in _PASSING
    return (failure.retry_after_s or 0.0) if everybody else 0.0


class Pace:
    """The pace of a provider: when its next request may go.

    Times are seconds of one clock that does not jump.
    """

    def __init__(self) -> None:
        #: A provider that asks for a longer wait is parked. That wait is its breaker's alone: it
        #: makes no rate, which would go on holding requests back when the breaker is closed.
        self.longest_s = inf
        self._limits = (0, 0)
        self._requests = Meter(approach=True)
        self._tokens = Meter()
        #: Whether what is read from the cache counts in the limit on tokens:
        #: a configured one is of all of them.
        self._spares_cache = False
        #: When the wait that the provider asked for is over; never further off than ``longest_s``.
        self.paused_until = 0.0
        #: Refusals in a row, each epoch one, without an answer between.
        self._refusals = 0
        self._crowd = _Crowd()

    def configure(self, rpm: int, tpm: int, max_concurrent: int, now: float) -> None:
        """Take the limits of the configuration; 0: find them out."""
        self._limits = rpm, tpm
        self._requests.configure(rpm, now)
        self._tokens.configure(tpm, now, exact=True)
        self._crowd.most = max_concurrent

    def forget(self, now: float) -> None:
        """Forget what refusals have taught, for they were not about the pace."""
        self._requests, self._tokens = Meter(approach=True), Meter()
        self.paused_until, self._refusals = 0.0, 0
        self.configure(*self._limits, self._crowd.most, now)

    @property
    def concurrent(self) -> int:
        """How many requests may be under way."""
        return self._crowd.size

    def forgive(self, now: float) -> None:
        """Lift the wait that the provider asked for, and let one request go:
        it tries how that does.
        """
        self.paused_until = 0.0
        self._requests.forgive(now, 1.0)
        self._tokens.forgive(now, inf)

    def ready_at(self, now: float, tokens: float) -> float:
        """Return when a request of so many tokens may go: at or before ``now``, or later."""
        if now < self.paused_until:
            return self.paused_until
        return max(self._requests.ready_at(now, 1.0), self._tokens.ready_at(now, tokens))

    def granted(self, now: float, tokens: float) -> SentRequest:
        """Say that a request goes now, with the most tokens that it may need."""
        self._requests.take(now, 1.0)
        return SentRequest(now, tokens, self._tokens.take(now, tokens))

    def answered(self, ticket: SentRequest, now: float, tokens: float, cached: float = 0.0) -> None:
        """Say that it was answered, and how many tokens it needed;
        ``cached``: that many of them came from the cache.
        """
        self._refusals = 0
        self._crowd.answered()
        if self._spares_cache and not self._limits[1]:
            tokens -= cached
        self._tokens.correct(ticket.entry, ticket.tokens, tokens, now)

    def failed(
        self, ticket: SentRequest | None, now: float, failure: Failure, under_way: int
    ) -> None:
        """Learn that a request failed (None: nothing is known of it).

        ``under_way``: requests at that moment, this one included; 0: they were not too many.
        """
        if ticket is None:
            ticket = SentRequest(now, 0.0, None)
        elif not failure.unsettled:
            self._tokens.correct(ticket.entry, ticket.tokens, 0.0, now)
        wait_s = asked_s(failure)
        if wait_s <= self.longest_s:
            if failure.kind is FailureKind.RATE_LIMITED:
                wait_s = self._refused(ticket, now, failure)
            self.paused_until = max(self.paused_until, now + wait_s)
        if failure.kind in _CONCURRENCY_FAILURES and under_way:
            self._crowd.failed(ticket.at, now, under_way)

    def heard(self, limits: Sequence[RateLimit], now: float) -> None:
        """Take the limits in the headers of an answer or a failure."""
        for limit in limits:
            meter = self._requests
            if limit.of == "tokens":
                meter, self._spares_cache = self._tokens, limit.spares_cache
            if limit.remaining > _UNPACED_ABOVE * limit.limit:
                meter.relax()
            elif limit.remaining <= _PACED_BELOW * limit.limit and limit.reset_s > 0:
                gone = limit.remaining if limit.window else limit.limit - limit.remaining
                meter.adopt(gone / limit.reset_s, max(1.0, limit.limit / 60), now)

    def figures(self) -> dict[str, float | int]:
        """Return what is known, for people: requests and tokens a minute, 0 where nothing is; and
        how many requests may be under way, now and at most.
        """
        rates = (meter.rate * 60 for meter in (self._requests, self._tokens))
        rpm, tpm = (round(rate, 1) if rate < inf else 0 for rate in rates)
        now, most = self.concurrent, self._crowd.most
        return {"rpm": rpm, "tpm": tpm, "concurrent": now, "max_concurrent": most}

    def _refused(self, ticket: SentRequest, now: float, failure: Failure) -> float:
        """Learn from a 429; return how long everybody waits for it."""
        meter, amount = self._requests, 1.0
        if _TOKENS.search(failure.message):
            meter, amount = self._tokens, ticket.tokens
        patience = doubled(_FIRST_WAIT_S, _LONGEST_WAIT_S, self._refusals)
        wait = patience if failure.retry_after_s is None else failure.retry_after_s
        if self._refusals > 1:
            wait = max(wait, patience)  # what it asked for was not enough
        if meter.refused(ticket.at, amount, now, max(wait, 0.01)):
            self._refusals += 1
            return wait
        return asked_s(failure)


class _Crowd:
    """How many requests may be under way:
    halved by trouble, once an epoch, and won back by answers.
    """

    def __init__(self) -> None:
        self.most = 1
        self._size = inf
        #: Up to here it grows by one with each answer, above by one with each round of answers.
        self._threshold = inf
        self._cut_at = -inf
        self._calm = True

    @property
    def size(self) -> int:
        return self.most if self._size >= self.most else int(self._size)

    def answered(self) -> None:
        self._calm = True
        if self._size < self.most:
            self._size += 1.0 if self._size < self._threshold else 1.0 / self._size
        else:
            self._size = inf

    def failed(self, granted_at: float, now: float, under_way: int) -> None:
        if granted_at <= self._cut_at:
            return
        self._cut_at = now
        self._size = max(1.0, min(self.size, under_way) / 2)
        if self._calm:
            # A series of failures without an answer says nothing about what is too many.
            self._threshold = self._size
            self._calm = False
