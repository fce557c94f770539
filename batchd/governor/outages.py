"""Providers that answer nobody: which failures mean that, who is told, and when they are tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from batchd.config.sections import Governor as Settings
from batchd.governor.breaker import Outage
from batchd.governor.pacing import asked_s
from batchd.governor.provider import Failing, Park, Permit, Provider, Refusal
from batchd.records import Cause, ErrorInfo, Failure, FailureKind, Reason, Scope, Status

#: Failures that park the provider: every call would meet them.
_PARKING: Mapping[FailureKind, Cause] = {
    FailureKind.AUTH: Cause.AUTH,
    FailureKind.QUOTA: Cause.QUOTA,
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
_BUSY = frozenset({429, 503, 529})
_PATIENCE = 10
#: A provider that asks to be left alone for longer is parked, so that others have its tasks' slots. Where
#: nothing may be parked, that ends its tasks, so that ``max_probe_s`` is waited first.
_LONG_WAIT_S = 60.0


class Watcher(Protocol):
    """Who is told what concerns more than one call; called on the loop."""

    def parked(self, provider: str, cause: Cause, message: str) -> None:
        """Nobody may ask this provider, until ``half_opened`` says otherwise."""

    def half_opened(self, provider: str) -> None:
        """One call may try how this provider does: see to it that somebody asks."""

    def closed(self, provider: str) -> None:
        """A parked provider answers again."""

    def gave_up(self, provider: str, cause: Cause, message: str) -> None:
        """Nobody is to wait for this provider any longer: end its tasks, then ``close_provider``."""

    def batch_spent(self, batch: str, message: str) -> None:
        """A call of this batch cannot be paid any more; told of each."""


class Outages:
    """Opens and closes the breakers of all providers."""

    def __init__(self, named: Callable[[str], Provider], settings: Callable[[], Settings]) -> None:
        """``named`` returns a provider, new ones too; ``settings`` what ``[governor]`` says today."""
        self._named = named
        self._settings = settings
        self.watcher: Watcher | None = None

    # What calls meet

    def judge(self, permit: Permit, failure: Failure) -> Refusal | Park | None:
        """Return what a failed call comes to; None if it is to be made again."""
        name, retries = permit.call.provider, permit.retries
        provider, message = self._named(name), failure.message
        cause, reason = _parking(failure, provider), FATAL.get(failure.kind)
        if reason is not None:
            # It is the call's own fault: the provider is there.
            self.answers(permit)
        elif cause is Cause.LIMITED:
            message = _asks(failure)
        elif cause is None:
            found = self._found(permit, failure, provider)
            if found is None:
                return None
            cause = found if isinstance(found, Cause) else None
            if retries:
                message = f"{message} (after {retries + 1} tries)"
        error = ErrorInfo(
            type=(cause and cause.reason) or reason or Reason.PROVIDER_UNAVAILABLE,
            message=message,
            http_status=failure.http_status,
            retries=retries,
        )
        if cause is not None and not self._alone(permit, provider, cause):
            return self._park(name, Outage(cause, error, asked_s(failure)), permit)
        return Refusal(Status.ERROR, Reason(error.type), error)

    def noticed(self, permit: Permit, failure: Failure) -> None:
        """Take what a failed call tells of its provider, although its task asks no more."""
        name = permit.call.provider
        cause = _parking(failure, self._named(name))
        if cause is not None:
            message = _asks(failure) if cause is Cause.LIMITED else failure.message
            reason = cause.reason or Reason.PROVIDER_UNAVAILABLE
            error = ErrorInfo(type=reason, message=message, http_status=failure.http_status)
            self._park(name, Outage(cause, error, asked_s(failure)), permit)

    def turned_away(self, name: str) -> Refusal | Park:
        """Return what a call to a provider that is shut comes to."""
        provider = self._named(name)
        if provider.breaker.outage is not None:
            return _outcome(name, provider.breaker.outage, provider)
        if provider.paused:
            message = f"the provider {name} is paused"
            return Park(Scope.PROVIDER, name, Cause.PAUSED, message)
        error = ErrorInfo(type=Reason.AUTH, message=provider.refusal)
        return self._park(name, Outage(Cause.AUTH, error))

    def answers(self, permit: Permit) -> None:
        """Note that a provider answers. What went before it was parked is of better days, and proves nothing."""
        name = permit.call.provider
        provider = self._named(name)
        provider.failing.pop(permit.call.ref, None)
        provider.given_up_by.clear()
        if permit.ticket is None:
            return
        provider.answered_from = max(provider.answered_from, permit.ticket.at)
        if provider.breaker.proved(permit.ticket.at):
            provider.breaker.close()
            provider.lift()
            if self.watcher is not None:
                self.watcher.closed(name)

    def half_opened(self, name: str) -> None:
        """Say that one call may try; where there is not even a key to try with, it is parked again."""
        provider = self._named(name)
        provider.lift()
        if self.watcher is not None:
            self.watcher.half_opened(name)
        outage = provider.breaker.outage
        if provider.refusal and outage is not None and provider.breaker.half_open:
            self._park(name, outage)

    # What people and the clock want

    def pause(self, name: str) -> None:
        """Turn the calls of a provider away until ``unpause``."""
        provider = self._named(name)
        provider.paused = True
        provider.pump()

    def unpause(self, name: str) -> None:
        """Let the calls of a provider go again, unless it is parked."""
        provider = self._named(name)
        provider.paused = False
        provider.lift()

    def restore(self, name: str, cause: Cause, message: str) -> None:
        """Park a provider that was parked when the last daemon ended; one call may try at once."""
        reason = cause.reason or Reason.PROVIDER_UNAVAILABLE
        outage = Outage(cause, ErrorInfo(type=reason, message=message))
        self._open(name, outage)
        self.retry(name)

    def retry(self, name: str) -> None:
        """Let one call try a provider now, parked or asked to wait: somebody has reason to think that it helps."""
        provider = self._named(name)
        if provider.breaker.outage is not None:
            provider.breaker.try_now()
        else:
            provider.lift()
            provider.pump()

    def give_up(self, name: str) -> None:
        """End the calls to a parked provider from now on, until ``close``."""
        provider = self._named(name)
        outage = provider.breaker.outage
        if outage is not None and not provider.breaker.hopeless:
            provider.breaker.give_up()
            if self.watcher is not None:
                self.watcher.gave_up(name, outage.cause, outage.error.message)
            provider.pump()

    def close(self, name: str) -> None:
        """Let the calls of a provider go again, as if nothing had been."""
        provider = self._named(name)
        provider.breaker.close()
        provider.lift()
        provider.pump()

    def _found(self, permit: Permit, failure: Failure, provider: Provider) -> Cause | Reason | None:
        """Return what is at fault, the provider or the request, once it was tried often enough."""
        now = asyncio.get_running_loop().time()
        failing = provider.failing.setdefault(permit.call.ref, Failing(now))
        failing.taken += failure.sent
        # Answers to calls that went before are of better days.
        others = provider.answered_from >= failing.since
        most = self._settings().max_retries
        if others and failure.http_status in _BUSY:
            most *= _PATIENCE
        if provider.breaker.outage is not None:
            return Cause.DOWN
        if permit.retries < most:
            return None
        # It is the request only where the provider, there for others, took it each time.
        faulty = others and failure.sent and failing.taken > most
        return Reason.PROVIDER_UNAVAILABLE if faulty else Cause.DOWN

    def _alone(self, permit: Permit, provider: Provider, cause: Cause) -> bool:
        """Whether a single task found a provider down where that would end all tasks: it may be its own fault."""
        if cause is not Cause.DOWN or self._settings().max_parked_s:
            return False
        provider.given_up_by.add(permit.call.ref)
        return len(provider.given_up_by) == 1

    def _park(self, name: str, outage: Outage, call: Permit | None = None) -> Refusal | Park:
        """Open a provider's breaker; return what that is to the call that found it out (None: there was none)."""
        provider = self._named(name)
        breaker = provider.breaker
        # Others of the same time find out the same, one by one: they change nothing, and end no try.
        if breaker.outage is None or (breaker.half_open and call is breaker.trial):
            self._open(name, outage)
            if not self._settings().max_parked_s:
                self.give_up(name)
            else:
                if self.watcher is not None:
                    self.watcher.parked(name, outage.cause, outage.error.message)
                provider.pump()
        return _outcome(name, outage, provider, culprit=True)

    def _open(self, name: str, outage: Outage) -> None:
        settings, provider = self._settings(), self._named(name)
        first = longest = settings.max_probe_s
        if outage.cause is Cause.DOWN:
            first = settings.probe_s
        elif outage.cause is Cause.LIMITED:
            first = longest = min(longest, outage.wait_s)
        provider.breaker.open(outage, first, longest)

    def longest_wait_s(self) -> float:
        """Return how long a wait may be that keeps tasks in their slots."""
        settings = self._settings()
        return _LONG_WAIT_S if settings.max_parked_s else settings.max_probe_s


def _parking(failure: Failure, provider: Provider) -> Cause | None:
    """Return why a single failure parks its provider; None: it does not."""
    if cause := _PARKING.get(failure.kind):
        return cause
    return Cause.LIMITED if asked_s(failure) > provider.pace.longest_s else None


def _asks(failure: Failure) -> str:
    return f"{failure.message} (it asks to wait for {asked_s(failure):.0f} s)"


def _outcome(
    name: str, outage: Outage, provider: Provider, *, culprit: bool = False
) -> Refusal | Park:
    """Return what an outage is to a call: a wait, or, once nobody waits any longer, the task's end."""
    if provider.breaker.hopeless:
        return Refusal(Status.ERROR, Reason(outage.error.type), outage.error)
    return Park(Scope.PROVIDER, name, outage.cause, outage.error.message, culprit=culprit)
