"""Providers, and models, that answer no call: who learns of it, and when they are tried again;
and what a single failure says of its provider, of its model, and of its request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import inf

from batchd.config.sections import GovernorSection as Settings
from batchd.governor.breaker import Breaker, Outage, Waits
from batchd.governor.news import Closed, GaveUp, HalfOpened, Parked, Report
from batchd.governor.pacing import asked_s
from batchd.governor.provider_queue import Failing, ParkDecision, Permit, ProviderQueue, Refusal
from batchd.records import (
    STANDARD,
    Cause,
    ErrorInfo,
    Failure,
    FailureKind,
    Reason,
    Scope,
    TaskStatus,
    Tier,
)

#: Failures that park the provider: every call would meet them.
_PARKING: Mapping[FailureKind, Cause] = {
    FailureKind.AUTH: Cause.AUTH,
    FailureKind.QUOTA: Cause.QUOTA,
    FailureKind.UNFIT: Cause.UNFIT,
}
#: Failures that end the task. After all others the same request is sent again.
FATAL: Mapping[FailureKind, Reason] = {
    FailureKind.FORBIDDEN: Reason.BAD_REQUEST,
    FailureKind.BAD_REQUEST: Reason.BAD_REQUEST,
    FailureKind.CONTENT_FILTER: Reason.CONTENT_FILTER,
    FailureKind.CONTEXT_OVERFLOW: Reason.CONTEXT_OVERFLOW,
}
#: What says that a provider has too much to do: where it answers others, the call's turn will come,
#: so that it is given up only after so many times ``max_retries``.
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529})
_PATIENCE = 10
#: How a provider says that it does not have a model, or not for us:
#: by the status, naming the model, …
_REFUSED = frozenset({FailureKind.FORBIDDEN, FailureKind.BAD_REQUEST})
_NOT_THERE = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
#: … or, with one of these, in words: DeepSeek, Groq, Mistral, OpenRouter and others say 400.
_WORDY = frozenset(
    {
        *(HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE),
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_NO_MODEL = re.compile(
    r"does not know the model|model[ _]not[ _](?:exist|found)|not a valid model|unknown model|invalid model(?: name|:)"
    r"|\bmodel\b[^.]{0,200}(?:does not exist|not found|no longer (?:available|supported)"
    r"|\b(?:been|is|was) (?:retired|decommissioned|shut down))",
    re.IGNORECASE,
)
#: A 429 in these words is about the account's own limits, whichever service tier it met.
_RATE = re.compile(r"rate.?limit|(?:requests?|tokens?)[ -]per|\b[rt]p[md]\b", re.IGNORECASE)
#: A provider that asks to be left alone for longer is parked, so that others have its tasks' slots.
#: Where nothing may be parked, that ends its tasks, so that ``max_probe_s`` is waited first.
_LONG_WAIT_S = 60.0
#: Less is nothing, where times are compared.
_INSTANT_S = 1e-3


def full(tier: Tier, failure: Failure) -> bool:
    """Whether a failure says that the service tier that a call asked for has no room:
    that says nothing of its model, nor of the provider's pace.
    """
    if tier == STANDARD or failure.kind is not FailureKind.RATE_LIMITED:
        return False
    # In front of its own words stand the model's name and the server's.
    return not _RATE.search(failure.message.rpartition("(HTTP ")[2])


def parking(failure: Failure, longest_s: float) -> Cause | None:
    """Return why one failure parks whom it concerns; None: it does not.

    ``longest_s``: a wait that keeps tasks in their slots.
    """
    if cause := _PARKING.get(failure.kind):
        return cause
    if asked_s(failure) > longest_s:
        return Cause.LIMITED
    return Cause.GONE if _gone(failure) else None


def _gone(failure: Failure) -> bool:
    """Whether the model is not there, now or ever, or not for this account:
    each of its tasks would learn the same.
    """
    if failure.kind not in _REFUSED:
        return False
    if failure.http_status in _NOT_THERE and failure.of_model:
        return True
    return failure.http_status in _WORDY and bool(_NO_MODEL.search(failure.message))


def said(failure: Failure, cause: Cause) -> str:
    """Return what people read of a failure that parks."""
    asks = f" (it asks to wait for {asked_s(failure):.0f} s)" if cause is Cause.LIMITED else ""
    return failure.message + asks


def busy(failure: Failure) -> bool:
    """Whether a failure says that there is too much to do at this time."""
    return failure.http_status in _BUSY


def holds_up(failure: Failure) -> bool:
    """Whether a call that fails like this has kept others waiting:
    its provider is busy, or was silent for all of its time.
    """
    return busy(failure) or failure.kind is FailureKind.TIMEOUT


def tries(failure: Failure, max_retries: int) -> int:
    """Return how often a request that fails like this is made again
    while its provider answers others.
    """
    return max_retries * (_PATIENCE if busy(failure) else 1)


@dataclass(frozen=True)
class Outages:
    """The outages: opens and closes the breakers of all providers, and of their models.

    A model's is opened by a refusal that names it,
    or that it met while its provider answered others.
    """

    #: Returns a provider, new ones too.
    _named: Callable[[str], ProviderQueue]
    #: Returns what ``[governor]`` says today.
    _settings: Callable[[], Settings]
    #: Takes news.
    _report: Report

    # What calls meet

    def judge(self, permit: Permit, failure: Failure) -> Refusal | ParkDecision | None:
        """Return what a failed call comes to; None if it is to be made again."""
        provider, retries = self._named(permit.call.provider), permit.retries.total()
        if failure.kind.repairable:
            self._there(permit)
            return None
        if full(permit.call.tier, failure):
            return self._roomless(permit, failure)
        if holds_up(failure):
            provider.held_up(permit)
        cause, reason = self._parks(permit, failure), FATAL.get(failure.kind)
        message, alone = failure.message, False
        if cause is not None:
            message, alone = said(failure, cause), self._own_fault(permit, failure)
        elif reason is not None:
            # It is the call's own fault: the provider is there.
            self._there(permit)
        else:
            found = self._found(permit, failure, provider)
            if (held := self._held_up(permit, failure)) is not None or found is None:
                return held
            cause = found if isinstance(found, Cause) else None
            alone = cause is not None and self._alone(permit, provider)
            if retries:
                message = f"{message} (after {retries + 1} tries)"
        error = _error(failure, message, (cause and cause.reason) or reason, retries)
        if cause is not None and not alone:
            return self._concerns(permit, failure, Outage(cause, error, asked_s(failure)))
        return Refusal(TaskStatus.ERROR, Reason(error.type), error)

    def noticed(self, permit: Permit, failure: Failure) -> None:
        """Take what a failed call shows of its provider, although its task asks no more."""
        cause = self._parks(permit, failure)
        if cause is not None:
            error = _error(failure, said(failure, cause), cause.reason)
            self._concerns(permit, failure, Outage(cause, error, asked_s(failure)))

    def turned_away(self, model: str) -> Refusal | ParkDecision:
        """Return what a call to a model comes to that is not asked, nor perhaps its provider."""
        name = model.partition("/")[0]
        provider = self._named(name)
        if not provider.shut:
            name = model
        breaker = provider.breaker_of(name)
        if breaker.outage is not None:
            return self._outcome(name, breaker.outage)
        if breaker.paused:
            return ParkDecision(
                Scope.of(name), name, Cause.PAUSED, f"the {Scope.of(name)} {name} is paused"
            )
        error = ErrorInfo(type=Reason.AUTH, message=provider.refusal)
        return self._park(name, Outage(Cause.AUTH, error))

    def answers(self, permit: Permit) -> None:
        """Note that a provider answers.

        What went before it was parked is of better days, and proves nothing.
        """
        provider, model = self._named(permit.call.provider), permit.call.model
        if permit.ticket is not None:
            provider.answered_from = max(provider.answered_from, permit.ticket.at)
            provider.served[model] = max(provider.served.get(model, 0.0), permit.ticket.at)
        self._there(permit)

    def half_opened(self, name: str) -> None:
        """Report that one call may try."""
        provider, breaker = self._of(name)
        if breaker is provider.breaker:
            provider.lift()
        self._report(HalfOpened(name))

    def without_key(self, name: str) -> None:
        """Park it again where one call may try, and there is not even a key to try with."""
        provider, breaker = self._of(name)
        if (
            provider.refusal
            and breaker is provider.breaker
            and breaker.outage is not None
            and breaker.half_open
        ):
            self._park(name, breaker.outage)

    # What people and the clock want

    def pause(self, name: str) -> None:
        """Turn the calls of a provider, or to a model, away until ``unpause``."""
        provider, breaker = self._of(name)
        breaker.paused = True
        provider.pump()

    def unpause(self, name: str) -> None:
        """Let the calls of a provider, or to a model, go again, unless it is parked."""
        provider, breaker = self._of(name)
        breaker.paused = False
        if breaker is provider.breaker:
            provider.lift()
            provider.pump()

    def restore(self, name: str, cause: Cause, message: str, tried_s: float = 0.0) -> None:
        """Park what was parked when the last daemon ended, tried for so long in vain;
        one call may try at once.
        """
        reason = cause.reason or Reason.PROVIDER_UNAVAILABLE
        breaker = self._of(name)[1]
        breaker.tried_s = tried_s
        breaker.open(Outage(cause, ErrorInfo(type=reason, message=message)), self._waits(cause))
        self.retry(name)

    def retry(self, name: str) -> None:
        """Let one call try now, where it is parked or asked to wait:
        somebody has reason to think that it helps.
        """
        provider, breaker = self._of(name)
        if breaker.outage is not None:
            breaker.try_now()
        else:
            provider.lift()
            provider.pump()

    def give_up(self, name: str) -> None:
        """End the calls to what is parked from now on, until ``close``."""
        provider, breaker = self._of(name)
        outage = breaker.outage
        if outage is not None and not breaker.hopeless:
            breaker.give_up()
            self._report(GaveUp(name, outage.cause, outage.error.message))
            provider.pump()

    def close(self, name: str) -> None:
        """Let the calls go again, as if nothing had been."""
        provider, breaker = self._of(name)
        breaker.close()
        if breaker is provider.breaker:
            provider.lift()
            provider.refused.clear()
        provider.pump()

    def stands(self, name: str) -> bool:
        """Return whether it is out of order."""
        return self._of(name)[1].outage is not None

    def tried_s(self, name: str) -> float:
        """Return how long it has been tried in vain, in seconds."""
        return self._of(name)[1].tried_s

    def again_s(self, name: str) -> float | None:
        """Return in how many seconds what is out of order is tried again by itself;
        None: it may be tried now, or never.
        """
        breaker = self._of(name)[1]
        again_s = breaker.tried_at - asyncio.get_running_loop().time()
        waits = breaker.outage is not None and not breaker.half_open and not breaker.hopeless
        return again_s if waits and again_s > 0 else None

    def longest_wait_s(self) -> float:
        """Return how long a wait may be that keeps tasks in their slots."""
        settings = self._settings()
        return _LONG_WAIT_S if settings.max_parked_s else settings.max_probe_s

    # How it is done

    def _of(self, name: str) -> tuple[ProviderQueue, Breaker]:
        """Return the provider, and the breaker of that name: its own, or a model's."""
        provider = self._named(name.partition("/")[0])
        return provider, provider.breaker_of(name)

    def _parks(self, permit: Permit, failure: Failure) -> Cause | None:
        return parking(failure, self._named(permit.call.provider).pace.longest_s)

    def _concerns(self, permit: Permit, failure: Failure, outage: Outage) -> Refusal | ParkDecision:
        """Park the model that alone is refused, else its provider;
        return what that is to the call.
        """
        call, provider = permit.call, self._named(permit.call.provider)
        if outage.cause is Cause.DOWN:
            return self._park(call.provider, outage, permit)
        since = permit.ticket.at if permit.ticket else inf
        of_model = failure.of_model or outage.cause is Cause.GONE
        if of_model or provider.serves_others(call.model, since):
            decision = self._park(call.model, outage, permit)
            self._proved(call.provider, permit)  # it is there, for others
            return decision
        provider.refused.add(call.model)
        return self._park(call.provider, outage, permit)

    def _there(self, permit: Permit) -> None:
        """Note that a provider is there, and the call's model."""
        provider = self._named(permit.call.provider)
        provider.failing.pop(permit.call.ref, None)
        provider.busy.pop(permit.call.model, None)
        provider.given_up_by.clear()
        provider.refused.discard(permit.call.model)
        for name in dict.fromkeys((permit.call.provider, permit.call.model, permit.call.sold_as)):
            self._proved(name, permit)

    def _proved(self, name: str, permit: Permit) -> None:
        """Let the calls go again, if this one has proved that they are answered."""
        provider = self._named(permit.call.provider)
        breaker = provider.breakers.get(name)
        if breaker is None or permit.ticket is None or not breaker.proved(permit.ticket.at):
            return
        breaker.close()
        if breaker is provider.breaker:
            provider.lift()
        self._report(Closed(name))
        if breaker is provider.breaker:
            # What ended its outage may have ended that of its models.
            for model, own in tuple(provider.breakers.items()):
                if own.outage is not None and model != permit.call.model:
                    self.retry(model)

    def _found(
        self, permit: Permit, failure: Failure, provider: ProviderQueue
    ) -> Cause | Reason | None:
        """Return what is at fault, the provider or the request, once it was tried often enough."""
        failing, kind = self._failing(permit, failure), busy(failure)
        # Answers to calls that went before are of better days.
        others = provider.answered_from >= failing.since
        most = self._settings().max_retries
        made = provider.tries(permit) - 1
        if others:
            # Each kind of failure counts against its own allowance alone.
            most, made = tries(failure, most), permit.retries[kind]
        if provider.breaker.outage is not None:
            return Cause.DOWN
        # All slots may be held by tasks of one model, and each of them have made few of its tries.
        if made < most:
            return None
        # It is the request only where the provider, there for others, took it each time.
        faulty = others and failure.sent and failing.taken[kind] > most
        return Reason.PROVIDER_UNAVAILABLE if faulty else Cause.DOWN

    def _held_up(self, permit: Permit, failure: Failure) -> Refusal | ParkDecision | None:
        """Park a model that alone is too busy or silent, call after call,
        while its provider serves others; None: it is tried again.

        Else it would take their turns and their slots, and its waits would be theirs.
        """
        provider, model = self._named(permit.call.provider), permit.call.model
        settings = self._settings()
        if model not in provider.busy or not holds_up(failure):
            return None
        held = provider.busy[model]
        if not busy(failure) and len(held.refs) == 1:
            return None  # it may be the one request's fault
        since = held.since
        often = provider.tries(permit) > settings.max_retries > 0
        if not (settings.max_parked_s and often and provider.serves_only_others(model, since)):
            return None
        provider.pace.forget(asyncio.get_running_loop().time())
        message = f"{failure.message} (after {provider.tries(permit)} tries, while other models are served)"
        error = _error(failure, message, retries=permit.retries.total())
        wait_s = max(asked_s(failure), settings.probe_s)
        cause = Cause.LIMITED if busy(failure) else Cause.DOWN
        return self._park(model, Outage(cause, error, wait_s), permit)

    def _roomless(self, permit: Permit, failure: Failure) -> Refusal | ParkDecision | None:
        """Park a model at a tier without room as one of its own; None: it is tried again."""
        retries, wait_s = permit.retries.total(), asked_s(failure)
        breaker = self._of(permit.call.sold_as)[1]
        often = retries >= self._settings().max_retries or wait_s > self.longest_wait_s()
        if breaker.outage is None and not often:
            return None
        message = f"{failure.message} (after {retries + 1} tries)" if retries else failure.message
        error = _error(failure, message, retries=retries)
        wait_s = max(wait_s, self._settings().probe_s)
        return self._park(permit.call.sold_as, Outage(Cause.TIER, error, wait_s), permit)

    def _own_fault(self, permit: Permit, failure: Failure) -> bool:
        """Whether a call was refused so often while its model answered others
        that it is its task's own fault.
        """
        provider = self._named(permit.call.provider)
        failing = self._failing(permit, failure)
        others = provider.served.get(permit.call.model, 0.0) >= failing.since
        most = tries(failure, self._settings().max_retries)
        return others and failing.taken[busy(failure)] > most

    def _failing(self, permit: Permit, failure: Failure) -> Failing:
        """Return the failures of a call's task, with this one among them."""
        now = asyncio.get_running_loop().time()
        known = self._named(permit.call.provider).failing
        failing = known.setdefault(permit.call.ref, Failing(now))
        failing.taken[busy(failure)] += failure.sent
        return failing

    def _alone(self, permit: Permit, provider: ProviderQueue) -> bool:
        """Whether a single task found a provider down where that would end all tasks:
        it may be its own fault.
        """
        if self._settings().max_parked_s:
            return False
        provider.given_up_by.add(permit.call.ref)
        return len(provider.given_up_by) == 1

    def _park(
        self, name: str, outage: Outage, call: Permit | None = None
    ) -> Refusal | ParkDecision:
        """Open a breaker; return what that is to the call that found it out (None:
        there was none).
        """
        provider, breaker = self._of(name)
        # Others of the same time find out the same, one by one:
        # they change nothing, and end no try.
        if breaker.news(call):
            waits = self._waits(outage.cause, outage.wait_s)
            breaker.open(outage, waits)
            if breaker.tried_s > waits.patience_s - _INSTANT_S:
                self.give_up(name)
            else:
                self._report(Parked(name, outage.cause, outage.error.message))
                provider.pump()
        return self._outcome(name, outage, culprit=True)

    def _waits(self, cause: Cause, asked_s: float = 0.0) -> Waits:
        settings = self._settings()
        first = longest = settings.max_probe_s
        if cause is Cause.DOWN:
            first = settings.probe_s
        elif cause is Cause.TIER:
            first = min(longest, asked_s)
        elif cause is Cause.LIMITED:
            first = longest = min(longest, asked_s)
        return Waits(first, longest, settings.max_parked_s)

    def _outcome(
        self, name: str, outage: Outage, *, culprit: bool = False
    ) -> Refusal | ParkDecision:
        """Return what an outage is to a call: a wait, or, once the wait is over, the task's end."""
        if self._of(name)[1].hopeless:
            return Refusal(TaskStatus.ERROR, Reason(outage.error.type), outage.error)
        message = outage.error.message
        return ParkDecision(Scope.of(name), name, outage.cause, message, culprit=culprit)


def _error(
    failure: Failure, message: str, reason: Reason | None = None, retries: int = 0
) -> ErrorInfo:
    return ErrorInfo(
        type=reason or Reason.PROVIDER_UNAVAILABLE,
        message=message,
        http_status=failure.http_status,
        retries=retries,
    )
