"""Service tiers without room: each waits in a lane of its own,
and its refusals say nothing about the provider's pace.

A lane is there while its tier is full. After a wait one call tries how it does; with each answer
twice as many may be under way, until the lane is no longer needed.
Who waits for long gives its slot back, or goes on in the standard tier.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from batchd.governor.news import Report, TierFree
from batchd.governor.provider_queue import ParkDecision, Permit, Refusal, WantedCall
from batchd.records import (
    STANDARD,
    Cause,
    ErrorInfo,
    Failure,
    FailureKind,
    Reason,
    Ref,
    Scope,
    TaskStatus,
)

#: A 429 in these words is about the account's own limits, whichever tier it met.
_RATE = re.compile(r"rate.?limit|(?:requests?|tokens?)[ -]per|\b[rt]p[md]\b", re.IGNORECASE)
#: What is waited for room where the provider does not say how long; doubled while there is none.
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
#: With so many calls under way a tier is no longer watched.
_UNWATCHED_FROM = 64

#: A model, ``PROVIDER/MODEL``, and a tier.
Name: TypeAlias = tuple[str, str]


def full(call: WantedCall, failure: Failure) -> bool:
    """Whether a failure says that the call's tier has no room."""
    if call.tier == STANDARD or failure.kind is not FailureKind.RATE_LIMITED:
        return False
    # In front of its own words stand the model's name and the server's.
    return not _RATE.search(failure.message.rpartition("(HTTP ")[2])


def _name(call: WantedCall) -> Name:
    return call.model, call.tier


@dataclass(slots=True, eq=False)
class _Lane:
    """A tier that is full, or was a moment ago."""

    #: Since when, by the loop's clock.
    since: float
    message: str
    #: When one call may try, and when the last one was refused.
    until: float = 0.0
    refused_at: float = 0.0
    wait_s: float = _FIRST_WAIT_S / 2
    #: How many calls may be under way.
    size: int = 1
    waiting: list[Permit] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Lanes:
    """The lanes of all tiers that are full."""

    def __init__(
        self,
        rejoin: Callable[[Sequence[Permit]], None],
        report: Report,
        limits: Callable[[], tuple[float, float]],
    ) -> None:
        """``rejoin`` queues permits again, whose turn had come.

        ``report`` takes the news that more calls may try.
        ``limits``: how long a task may wait in its slot, and parked, in seconds.
        """
        self._rejoin = rejoin
        self._report = report
        self._limits = limits
        self._lanes: dict[Name, _Lane] = {}
        self._under_way: Counter[Name] = Counter()
        #: Since when a task's next call waits for room,
        #: by the loop's clock, parked meanwhile or not.
        self._since: dict[Ref, float] = {}

    # What the governor asks

    def turn(self, permit: Permit) -> ParkDecision | Refusal | bool:
        """Return whether a call whose turn it is may go;
        False: it waits, and will be queued again.
        """
        call, now = permit.call, asyncio.get_running_loop().time()
        name = _name(call)
        lane = self._lanes.get(name)
        if lane is None or self._open(name, lane, now):
            return True
        waited_s = now - self._since.setdefault(call.ref, now)
        if call.fallback_s is not None and waited_s >= call.fallback_s:
            permit.call = replace(call, tier=STANDARD, fallback_s=None)
            return True
        slot_s, parked_s = self._limits()
        if max(waited_s, lane.until - now) < slot_s:
            lane.waiting.append(permit)
            self._arm(name, lane)
            return False
        if not parked_s or now - lane.since > parked_s:
            error = ErrorInfo(type=Reason.PROVIDER_UNAVAILABLE, message=lane.message)
            return Refusal(TaskStatus.ERROR, Reason.PROVIDER_UNAVAILABLE, error)
        again_s = None if call.fallback_s is None else call.fallback_s - waited_s
        return ParkDecision(
            Scope.TASK, call.model, Cause.TIER, lane.message, tier=call.tier, again_s=again_s
        )

    def waits(self, model: str, tier: str) -> bool:
        """Whether a task without a slot has to wait for room:
        from now on it learns when there may be some.
        """
        name = model, tier
        lane = self._lanes.get(name)
        if lane is None or self._open(name, lane, asyncio.get_running_loop().time()):
            return False
        self._arm(name, lane)
        return True

    def await_room(self, model: str, tier: str) -> None:
        """Let tasks that wait without a slot learn when there may be room."""
        name = model, tier
        if lane := self._lanes.get(name):
            self._arm(name, lane)

    def __len__(self) -> int:
        return len(self._lanes)

    # What becomes of calls

    def entered(self, permit: Permit) -> None:
        """Count a call as under way."""
        self._under_way[_name(permit.call)] += 1

    def exit(self, permit: Permit) -> None:
        """Count it as no longer under way."""
        name = _name(permit.call)
        self._under_way[name] -= 1
        if not self._under_way[name]:
            del self._under_way[name]

    def refused(self, permit: Permit, failure: Failure) -> bool:
        """Note that a call found no room; return whether that is news."""
        call, now = permit.call, asyncio.get_running_loop().time()
        name, news = _name(call), False
        self._since.setdefault(call.ref, now)
        lane = self._lanes.get(name)
        if lane is None:
            lane, news = self._lanes.setdefault(name, _Lane(now, failure.message)), True
        # Calls that went at the same time are one try.
        if permit.ticket is None or permit.ticket.at >= lane.refused_at:
            lane.wait_s = min(_LONGEST_WAIT_S, 2 * lane.wait_s)
            lane.size, lane.refused_at = 1, now
        asked_s = lane.wait_s if failure.retry_after_s is None else failure.retry_after_s
        lane.until, lane.message = max(lane.until, now + asked_s), failure.message
        self._arm(name, lane)
        return news

    def answered(self, permit: Permit) -> None:
        """Note an answer to a call that is over: where its tier was full, it has room for more."""
        call, now = permit.call, asyncio.get_running_loop().time()
        self._since.pop(call.ref, None)
        name = _name(call)
        lane = self._lanes.get(name)
        if lane is None or permit.ticket is None or permit.ticket.at < lane.refused_at:
            return
        lane.size, lane.until, lane.wait_s = 2 * lane.size, now, _FIRST_WAIT_S / 2
        lane.since = now
        if lane.size >= _UNWATCHED_FROM:
            del self._lanes[name]
        self._go_on(name, lane)

    def withdraw(self, permit: Permit) -> None:
        """Take a permit out that waits, if it does."""
        lane = self._lanes.get(_name(permit.call))
        if lane is not None and permit in lane.waiting:
            lane.waiting.remove(permit)

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        self._since.pop(ref, None)

    def lift(self, model: str, tier: str) -> None:
        """Let one call try now, whatever the provider asked to wait."""
        name = model, tier
        if lane := self._lanes.get(name):
            lane.until = 0.0
            self._go_on(name, lane)

    # How it is done

    def _open(self, name: Name, lane: _Lane, now: float) -> bool:
        return now >= lane.until and self._under_way[name] < lane.size

    def _arm(self, name: Name, lane: _Lane) -> None:
        """Look again when one may try, or when somebody has waited long enough;
        never later than the longest wait.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        longest_s = min(self._limits()[0], _LONGEST_WAIT_S)
        ends = [
            self._since.get(p.call.ref, now) + p.call.fallback_s
            for p in lane.waiting
            if p.call.fallback_s is not None
        ]
        at = min([*ends, now + longest_s, lane.until if lane.until > now else now + lane.wait_s])
        if lane.timer is not None:
            lane.timer.cancel()
        lane.timer = loop.call_at(at, self._go_on, name, lane)

    def _go_on(self, name: Name, lane: _Lane) -> None:
        """Let waiting calls ask again, and others begin if there is room for more."""
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        waiting, lane.waiting = lane.waiting, []
        if waiting:
            self._rejoin(waiting)
        still = self._lanes.get(name) is lane
        now = asyncio.get_running_loop().time()
        room = lane.size - self._under_way[name] - len(lane.waiting) if now >= lane.until else 0
        self._report(TierFree(*name, max(0, room) if still else -1))
        if still and (lane.waiting or lane.until > now):
            self._arm(name, lane)
