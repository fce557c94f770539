"""One provider: who waits for it, who is under way, and when the next one may go."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import TypeAlias

from batchd.governor.breaker import Breaker
from batchd.governor.pacing import Pace, SentRequest
from batchd.records import (
    STANDARD,
    Cause,
    ErrorInfo,
    Failure,
    Price,
    Reason,
    Ref,
    Scope,
    TaskStatus,
    Tier,
    Usage,
    sold_as,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCall:
    """A model call that a task wants to make."""

    ref: Ref
    #: ``provider/model``.
    model: str
    #: None: none is known.
    price: Price | None
    #: Estimated.
    input_tokens: int
    max_output_tokens: int
    #: The service tier that it asks for.
    tier: Tier = STANDARD
    #: After how many seconds without room there it goes on in the standard one; None: never.
    fallback_s: float | None = None
    #: The seconds that it may take.
    timeout_s: float = 0.0

    @property
    def provider(self) -> str:
        """The provider's name in the configuration."""
        return self.model.partition("/")[0]

    @property
    def sold_as(self) -> str:
        """The model, at the tier: what has outages of its own."""
        return sold_as(self.model, self.tier)

    @property
    def tokens(self) -> int:
        """The most that it may need."""
        return self.input_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Grant:
    """Make the call now."""

    #: What was set aside for it; None where no price is known.
    reserved_usd: float | None
    #: The tokens of input and of output that this is the price of.
    reserved_tokens: tuple[int, int]
    #: The service tier to ask for.
    tier: Tier = STANDARD


@dataclass(frozen=True, slots=True)
class Refusal:
    """Make no call: the task ends."""

    status: TaskStatus
    reason: Reason
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class ParkDecision:
    """Make no call now: the task gives its slot back, until what it waits for is over."""

    #: ``PROVIDER``, ``MODEL`` or ``DAY``.
    scope: Scope
    #: The provider's, or the model's.
    name: str
    cause: Cause
    message: str
    #: Whether this very call found it out.
    culprit: bool = False
    #: After how many seconds it asks again all the same; None: once that goes on.
    again_s: float | None = None


@dataclass(slots=True)
class Failing:
    """A task whose calls have failed since it was last answered, parked meanwhile or not."""

    #: When they began to, by the loop's clock.
    since: float
    #: How often the provider took the request all the same, by whether it was too busy for it.
    taken: Counter[bool] = field(default_factory=Counter)


@dataclass(slots=True)
class Busy:
    """A model that was too busy for each of its calls, or silent,
    one after another, since it was last answered.
    """

    #: When that began, by the loop's clock.
    since: float
    #: Calls that went at the same time are one try.
    tries: int = 0
    #: When the last try failed.
    failed_at: float = -inf
    #: The tasks whose calls they were.
    refs: set[Ref] = field(default_factory=set)


Answer: TypeAlias = Callable[[Grant | Refusal | ParkDecision], None]


@dataclass(slots=True, eq=False)
class Permit:
    """A call's permit: wanted at first, then granted, until the call has its outcome."""

    call: WantedCall
    answer: Answer
    #: Failed requests so far, by whether the provider was too busy for them.
    retries: Counter[bool] = field(default_factory=Counter)
    granted: bool = False
    #: What is set aside for it, in dollars.
    reserved: float = 0.0
    #: What the pacing clock knows it by, once it is granted.
    ticket: SentRequest | None = None
    #: Ends a backoff.
    timer: asyncio.TimerHandle | None = None


class ProviderQueue:
    """The queue before one provider: first come, first served."""

    def __init__(
        self, name: str, serve: Callable[[Permit], None], half_opened: Callable[[str], None]
    ) -> None:
        """``serve`` answers a permit whose turn it is; where that grants it, it calls ``enter``."""
        self.pace = Pace()
        #: Why it cannot be called at all: it has no key.
        self.refusal = ""
        self._half_opened = half_opened
        #: Its own, and those of its models that are parked, or were, by name.
        self.breakers: dict[str, Breaker] = {}
        self.breaker = self.breaker_of(name)
        #: By model: when the last call that was answered was granted, by the loop's clock.
        self.served: dict[str, float] = {}
        #: Models whose refusal has parked it, and that were not answered since:
        #: once it serves others, it is theirs.
        self.refused: set[str] = set()
        #: When the last call that it answered was granted,
        #: by the loop's clock, and who gave up waiting since.
        self.answered_from = 0.0
        self.given_up_by: set[Ref] = set()
        self.failing: dict[Ref, Failing] = {}
        self.busy: dict[str, Busy] = {}
        self._serve = serve
        self._waiting: deque[Permit] = deque()
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None

    def breaker_of(self, name: str) -> Breaker:
        """Return its own breaker by its name, or that of one of its models."""
        known = self.breakers.get(name)
        return known or self.breakers.setdefault(name, Breaker(partial(self._half_opened, name)))

    def join(self, permit: Permit, *, first: bool = False) -> None:
        """Queue a permit: at the end, or, where its turn had come before, at the front."""
        if first:
            self._waiting.appendleft(permit)
        else:
            self._waiting.append(permit)

    def leave(self, permit: Permit) -> None:
        """Take a permit out of the queue."""
        if permit in self._waiting:
            self._waiting.remove(permit)

    def enter(self, permit: Permit) -> None:
        """Count a call as under way."""
        self._under_way += 1
        permit.ticket = self.pace.granted(asyncio.get_running_loop().time(), permit.call.tokens)
        for breaker in self._of(permit):
            breaker.entered(permit)

    def exit(self, permit: Permit) -> None:
        """Count a call as no longer under way."""
        self._under_way -= 1
        for breaker in self._of(permit):
            breaker.ended(permit)

    def answered(self, permit: Permit, usage: Usage) -> None:
        """Report an answer, and how many tokens it needed, to the pacing clock."""
        if permit.ticket is not None:
            now = asyncio.get_running_loop().time()
            cached = usage.cached_input_tokens
            self.pace.answered(permit.ticket, now, usage.total_tokens, cached)

    def failed(self, permit: Permit, failure: Failure, *, busy: bool) -> None:
        """Pace by a failure, unless the call's model alone is parked: that is not about pace.

        ``busy``: the provider says that it has too much to do. What a task meets again, while
        others are answered, is no reason to let fewer of those go at a time.
        """
        breaker = self.breakers.get(permit.call.model)
        if breaker is not None and breaker.outage is not None:
            return
        now = asyncio.get_running_loop().time()
        failing = self.failing.get(permit.call.ref)
        own = failing is not None and self.answered_from >= failing.since and not busy
        self.pace.failed(permit.ticket, now, failure, 0 if own else self._under_way)

    def pump(self) -> None:
        """Serve all whose turn it is."""
        loop, pace = asyncio.get_running_loop(), self.pace
        while self._waiting and (self.shut or self._under_way < pace.concurrent):
            if not self.shut:
                now = loop.time()
                ready_at = pace.ready_at(now, self._waiting[0].call.tokens)
                if ready_at > now:
                    if self._timer is not None:
                        self._timer.cancel()
                    self._timer = loop.call_at(ready_at, self.pump)
                    return
            self._serve(self._waiting.popleft())

    def servable(self) -> Permit | None:
        """Return the permit that ``pump`` would serve now."""
        if not self._waiting or not (self.shut or self._under_way < self.pace.concurrent):
            return None
        first, now = self._waiting[0], asyncio.get_running_loop().time()
        return first if self.shut or self.pace.ready_at(now, first.call.tokens) <= now else None

    @property
    def shut(self) -> bool:
        """Whether calls are turned away at once, rather than kept waiting."""
        return bool(self.refusal) or self.breaker.shut

    def held_up(self, permit: Permit) -> None:
        """Note that a model was too busy for a call, or silent."""
        now = asyncio.get_running_loop().time()
        busy = self.busy.setdefault(permit.call.model, Busy(now))
        if permit.ticket is None or permit.ticket.at >= busy.failed_at:
            busy.tries, busy.failed_at = busy.tries + 1, now
        busy.refs.add(permit.call.ref)

    def tries(self, permit: Permit) -> int:
        """Return how often a call was made, or others to its model were in its place, in vain."""
        busy = self.busy.get(permit.call.model)
        return max(permit.retries.total() + 1, busy.tries if busy else 0)

    def serves_only_others(self, model: str, since: float) -> bool:
        """Whether it has answered calls to other models since then, and none to this one."""
        return self.serves_others(model, since) and self.served.get(model, 0.0) < since

    def serves_others(self, model: str, since: float) -> bool:
        """Whether what refuses a model's call, made then, serves others:
        since then, or since it refused this one before.
        """
        if model in self.refused and self.breaker.outage is None:
            return True
        return any(at > since for name, at in self.served.items() if name != model)

    def turns_away(self, model: str) -> bool:
        """Whether a call to a model, at its tier or any, is turned away:
        with all others, or alone.
        """
        own = self.breakers.get(model)
        if self.shut or own is None:
            return self.shut
        # Where only tasks of parked models are left, one of them tries how the provider does.
        return own.paused or (own.shut and not self.breaker.half_open)

    def lift(self) -> None:
        """Let one request go now, whatever the provider asked to wait;
        what it meets decides the rest.
        """
        self.pace.forgive(asyncio.get_running_loop().time())

    def wait_s(self) -> float:
        """Return how long the provider asks everybody to wait:
        for a moment, or parked, until it is tried.
        """
        until, outage = self.pace.paused_until, self.breaker.outage
        if outage is not None and outage.cause is Cause.LIMITED and not self.breaker.half_open:
            until = max(until, self.breaker.tried_at)
        return max(0.0, until - asyncio.get_running_loop().time())

    def _of(self, permit: Permit) -> list[Breaker]:
        names = {permit.call.model, permit.call.sold_as}
        return [self.breaker, *(self.breakers[name] for name in names if name in self.breakers)]

    @property
    def crowded(self) -> bool:
        """Whether calls wait for it: more of them would have to wait too."""
        return bool(self._waiting)

    def figures(self) -> dict[str, float | int]:
        """Return what `status` shows."""
        return {
            "under_way": self._under_way,
            "waiting": len(self._waiting),
            "paused_s": round(self.wait_s(), 1),
            **self.pace.figures(),
        }
