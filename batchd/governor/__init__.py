"""Permits for model calls: the only owner of retry, wait, park, give up, and of all money.

A call asks, and is answered at its time: granted, with what it may cost set aside; parked, where
that time may be far; or refused for good. A failed call asks the same way. Nothing here does any
I/O; all of it belongs to one loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from batchd.config import Config
from batchd.governor.estimates import PROOF, Estimates
from batchd.governor.news import BatchSpent, Overlong, Report
from batchd.governor.outages import Outages, busy, full
from batchd.governor.provider_queue import (
    Answer as Answer,
    Grant as Grant,
    ParkDecision as ParkDecision,
    Permit,
    ProviderQueue,
    Refusal as Refusal,
    WantedCall as WantedCall,
)
from batchd.governor.treasury import Purse, Treasury
from batchd.pauses import doubled
from batchd.records import (
    STANDARD,
    Cause,
    ErrorInfo,
    Failure,
    FailureKind,
    RateLimit,
    Reason,
    Ref,
    Scope,
    TaskStatus,
    Usage,
    dollars,
)

_NO_USAGE = Usage()


class Governor:
    """The governor: answers every request for a model call, at its time."""

    def __init__(
        self,
        config: Config,
        missing: Mapping[str, str],
        report: Report,
        *,
        clock: Callable[[], float] = time.time,
        booked: Callable[[int], float] = lambda _day: 0.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``missing``: why a provider cannot be called at all, by its name: it has no key.

        ``report`` takes news of what concerns more than one call. ``booked``: as in ``Treasury``.
        """
        self._config = config
        self._report = report
        self._missing = missing
        self._jitter = jitter
        self.money = Treasury(config.budget.per_day_usd, clock, booked)
        self.outages = Outages(self._provider, lambda: self._config.governor, report)
        self._providers: dict[str, ProviderQueue] = {}
        self._permits: dict[Ref, Permit] = {}
        self.estimates = Estimates(clock)
        #: Since when a task's next call finds no room in its tier,
        #: by the loop's clock, parked meanwhile or not.
        self._roomless: dict[Ref, float] = {}
        #: Waiting for money that is set aside for calls under way.
        self._short: list[Permit] = []

    def retune(self, config: Config, missing: Mapping[str, str]) -> None:
        """Take over a new configuration."""
        self._config, self._missing = config, missing
        self.money.limit_day(config.budget.per_day_usd)
        self.estimates.forgive()
        for name, provider in self._providers.items():
            self._tune(name, provider)
            provider.pump()

    def ask(self, call: WantedCall, answer: Answer) -> None:
        """Request a permit; ``answer`` is called with it, perhaps at once."""
        permit = self._permits[call.ref] = Permit(call, answer)
        provider = self._provider(call.provider)
        provider.join(permit)
        provider.pump()

    def failed(self, call: WantedCall, failure: Failure, answer: Answer) -> None:
        """Say that the granted call failed;
        ``answer`` is called when it may be made again, or never.
        """
        before = self._permits.get(call.ref) or Permit(call, answer)
        if full(before.call.tier, failure):
            self._roomless.setdefault(call.ref, asyncio.get_running_loop().time())
        else:
            # Before the next in line takes the place of this call.
            self._provider(call.provider).failed(before, failure, busy=busy(failure))
        decision = self.outages.judge(before, failure)
        if before.granted:
            self._end(before, before.reserved if failure.unsettled else 0.0)
        fallback_s = self._fallback_s(before.call)
        # What may not be parked waits here until the standard tier takes it.
        waits = isinstance(decision, Refusal) and fallback_s != math.inf
        if decision is not None and fallback_s != 0 and not waits:
            answer(_dated(decision, fallback_s))
            return
        before.retries[busy(failure)] += 1
        permit = Permit(call, answer, before.retries)
        self._permits[call.ref] = permit
        self._try_later(permit, failure)

    def answered(
        self,
        ref: Ref,
        cost_usd: float,
        usage: Usage = _NO_USAGE,
        *,
        tier: str = STANDARD,
        believed: bool = True,
    ) -> None:
        """Say that the granted call was answered, by which tier,
        what it cost, and which tokens it needed.

        ``believed``: whether the provider is, in what it says of the tokens.
        """
        permit = self._permits.get(ref)
        if permit is not None and permit.granted:
            self._provider(permit.call.provider).answered(permit, usage)
            if (
                usage.calls
                and believed
                and (news := self.estimates.learn(permit.call, usage, tier))
            ):
                self._report(Overlong(permit.call.model, news))
            self.outages.answers(permit)
            self._roomless.pop(ref, None)
            self._end(permit, cost_usd)

    def heard(self, limits: Mapping[str, Sequence[RateLimit]]) -> None:
        """Take the limits that providers, by name, reported with their answers."""
        for name, reported in limits.items():
            if provider := self._providers.get(name):
                provider.pace.heard(reported, asyncio.get_running_loop().time())

    def released(self, ref: Ref, failure: Failure | None = None, *, cut: bool = False) -> None:
        """Say that the granted call came to nothing, and is not made again.

        ``cut``: it was broken off at the end of the task's own time,
        which says nothing of its provider.
        """
        permit = self._permits.get(ref)
        if permit is not None and permit.granted:
            if failure is not None and not cut and not full(permit.call.tier, failure):
                self._provider(permit.call.provider).failed(permit, failure, busy=busy(failure))
                self.outages.noticed(permit, failure)
            self._end(permit, permit.reserved if failure and failure.unsettled else 0.0)

    def withdraw(self, ref: Ref) -> bool:
        """Take back a request that waits, without an answer; False if none does."""
        permit = self._permits.get(ref)
        if permit is None or permit.granted:
            return False
        del self._permits[ref]
        if permit.timer is not None:
            permit.timer.cancel()
        self._provider(permit.call.provider).leave(permit)
        if permit in self._short:
            self._short.remove(permit)
        return True

    def close_task(self, ref: Ref) -> None:
        """Forget a task that no worker has now; a call of it under way counts as perhaps paid."""
        if not self.withdraw(ref) and (permit := self._permits.get(ref)):
            self._end(permit, permit.reserved)
        self.money.close_task(ref)

    def try_parked(self) -> None:
        """Let one call try each provider, and model, that is parked:
        its key or its address may be another one.
        """
        for provider in tuple(self._providers.values()):
            for name in [name for name, breaker in provider.breakers.items() if breaker.outage]:
                self.outages.retry(name)

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        self.money.wanted.pop(ref, None)
        self._roomless.pop(ref, None)
        for provider in self._providers.values():
            provider.failing.pop(ref, None)

    def waits_for_day(self, call: WantedCall) -> bool:
        """Whether a call would have to wait for more of the day's money,
        or for another day; one dearer than any day ends.
        """
        day, amount = self.money.day(), self.estimates.most(call, PROOF)
        return amount is not None and not day.could_hold(amount) and not self._beyond(call)

    def capped(self, ref: Ref) -> bool:
        """Whether a limit of the task's batch or of the day is active."""
        return any(purse.limit for purse in self.money.purses(ref))

    @property
    def crowded(self) -> set[str]:
        """The providers before which calls wait."""
        return {name for name, provider in self._providers.items() if provider.crowded}

    @property
    def waiting(self) -> int:
        """Calls that wait for their permit."""
        return sum(not p.granted for p in self._permits.values())

    def servable(self) -> Iterator[Ref]:
        """Yield tasks whose request for a permit could be answered now;
        none while each wake-up comes.
        """
        for provider in self._providers.values():
            if permit := provider.servable():
                yield permit.call.ref
        for permit in self._short:
            if not any(purse.reserved for purse in self.money.purses(permit.call.ref)):
                yield permit.call.ref

    def figures(self) -> dict[str, dict[str, float | int]]:
        """Return what `status` shows, by provider."""
        return {name: provider.figures() for name, provider in self._providers.items()}

    def _provider(self, name: str) -> ProviderQueue:
        provider = self._providers.get(name)
        if provider is None:
            half_opened = self.outages.half_opened
            provider = self._providers[name] = ProviderQueue(name, self._serve, half_opened)
            self._tune(name, provider)
        return provider

    def _tune(self, name: str, provider: ProviderQueue) -> None:
        known = self._config.providers.get(name)
        most = known.max_concurrent if known else 1
        rpm, tpm = (known.rpm, known.tpm) if known else (0, 0)
        provider.pace.configure(rpm, tpm, most, asyncio.get_running_loop().time())
        provider.pace.longest_s = self.outages.longest_wait_s()
        provider.refusal = self._missing.get(
            name, "" if known else f"[providers.{name}] is not configured"
        )

    def _serve(self, permit: Permit) -> None:
        """Grant or refuse a permit whose turn it is, or let it wait for money."""
        provider, call = self._provider(permit.call.provider), permit.call
        if provider.turns_away(call.model):
            self._decide(permit, self.outages.turned_away(call.model))
            return
        if call.tier != STANDARD and provider.turns_away(call.sold_as):
            self._roomless.setdefault(call.ref, asyncio.get_running_loop().time())
            if fallback_s := self._fallback_s(call):
                decision = self.outages.turned_away(call.sold_as)
                if isinstance(decision, Refusal) and fallback_s != math.inf:
                    loop = asyncio.get_running_loop()
                    permit.timer = loop.call_later(fallback_s, self._rejoin, permit)
                else:
                    self._decide(permit, _dated(decision, fallback_s))
                return
        if self._fallback_s(call) == 0:
            call = permit.call = dataclasses.replace(call, tier=STANDARD, fallback_s=None)
        amount, purses = self.estimates.most(call), self.money.purses(call.ref)
        answers, caution = 1, self.estimates.caution(call)
        if amount and not all(p.could_hold(amount) for p in purses):
            # A single answer ends no task: one call goes, and shows whether it is like that.
            answers, proved = PROOF, self.estimates.most(call, PROOF) or amount
            amount, caution = proved, amount / proved
        if amount is None and (capped := [p for p in purses if p.limit]):
            what = call.model if call.tier == STANDARD else f"{call.model} in the tier {call.tier}"
            message = f"no price is known for {what}, so {capped[0].name} cannot be kept"
            self._refuse(permit, TaskStatus.ERROR, Reason.BAD_REQUEST, message)
        elif broken := [p for p in purses if not p.could_hold(amount or 0.0)]:
            self._too_dear(permit, broken[0], amount or 0.0)
        elif not all(p.holds(amount or 0.0, caution) for p in purses):
            self._short.append(permit)
        else:
            permit.granted, permit.reserved = True, amount or 0.0
            self.money.wanted.pop(call.ref, None)
            for purse in purses:
                purse.reserved += permit.reserved
            provider.enter(permit)
            permit.answer(Grant(amount, self.estimates.tokens(call, answers), call.tier))

    def _too_dear(self, permit: Permit, purse: Purse, amount: float) -> None:
        """Answer a call that is more than a purse has left:
        the day's is filled again, if only for what fits into it.
        """
        ref, output = permit.call.ref, permit.call.max_output_tokens
        may_cost = f"the next call may cost {dollars(amount)}"
        if amount > purse.limit:
            may_cost += f" ({output:,} tokens of output, which max_output_tokens allows)"
        message = f"{purse.name} of {dollars(purse.limit)} is reached: {dollars(purse.spent)} is spent, and {may_cost}"
        if self.money.is_batch(purse, ref.batch):
            self._report(BatchSpent(ref.batch, message))
        if self.money.is_day(purse) and self._beyond(permit.call):
            message = (
                f"{may_cost}, and {purse.name} is {dollars(purse.limit)}: no day can pay for it; "
                "raise [budget] per_day_usd or lower max_output_tokens, then `batchd retry` it"
            )
        elif self.money.is_day(purse) and self._config.governor.max_parked_s:
            self.money.wanted[ref] = permit.call
            self._decide(permit, ParkDecision(Scope.DAY, "", Cause.BUDGET, message))
            return
        self._refuse(permit, TaskStatus.TIMEOUT, Reason.BUDGET, message)

    def _beyond(self, call: WantedCall) -> bool:
        """Whether no day could pay for a call, not even one with the largest budget so far."""
        return (self.estimates.most(call, PROOF) or 0.0) > self.money.largest_day

    def _decide(self, permit: Permit, decision: Refusal | ParkDecision) -> None:
        del self._permits[permit.call.ref]
        permit.answer(decision)

    def _refuse(self, permit: Permit, status: TaskStatus, reason: Reason, message: str) -> None:
        error = ErrorInfo(type=reason, message=message, retries=permit.retries.total())
        self._decide(permit, Refusal(status, reason, error))

    def _end(self, permit: Permit, spent: float) -> None:
        """A granted call has its outcome: make room for others."""
        del self._permits[permit.call.ref]
        provider = self._provider(permit.call.provider)
        provider.exit(permit)
        self.money.settle(permit.call.ref, permit.reserved, spent)
        short, self._short = self._short, []
        for other in reversed(short):
            self._provider(other.call.provider).join(other, first=True)
        for each in {provider, *(self._provider(other.call.provider) for other in short)}:
            each.pump()

    def _fallback_s(self, call: WantedCall) -> float:
        """Return in how many seconds a call goes on in the standard tier; 0: now."""
        since = self._roomless.get(call.ref)
        if call.fallback_s is None or since is None:
            return math.inf
        return max(0.0, since + call.fallback_s - asyncio.get_running_loop().time())

    def _try_later(self, permit: Permit, failure: Failure) -> None:
        """Queue a failed call again: after what the provider asked of all, or its own backoff."""
        governor, roomless = self._config.governor, full(permit.call.tier, failure)
        paced = failure.retry_after_s is not None or failure.kind is FailureKind.RATE_LIMITED
        if (paced and not roomless) or failure.kind.repairable:
            self._rejoin(permit)
            return
        tries = permit.retries.total() - 1
        longest = doubled(governor.first_backoff_s, governor.max_backoff_s, tries)
        delay = self._jitter() * longest
        if roomless:
            asked = max(delay, failure.retry_after_s or 0.0)
            delay = min(asked, self._fallback_s(permit.call))
        permit.timer = asyncio.get_running_loop().call_later(delay, self._rejoin, permit)

    def _rejoin(self, permit: Permit) -> None:
        permit.timer = None
        provider = self._provider(permit.call.provider)
        # Behind the others: a call that is always refused must not take each turn.
        provider.join(permit)
        provider.pump()


def _dated(decision: Refusal | ParkDecision, again_s: float) -> Refusal | ParkDecision:
    """Return a decision with when the call asks again all the same."""
    if isinstance(decision, Refusal) or again_s == math.inf:
        return decision
    return dataclasses.replace(decision, again_s=again_s)
