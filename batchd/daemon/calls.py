"""The calls of running tasks: workers, governor and store joined.

A request is flushed, granted, committed, answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from batchd import events as vocabulary, wire
from batchd.daemon import main_loop
from batchd.daemon.active import ActiveAttempt
from batchd.daemon.lessons import Lessons
from batchd.daemon.writes import DaemonStore
from batchd.errors import StaleAttemptError
from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
    CancelRequested,
    Event,
    Suspended,
    TaskFinished,
)
from batchd.governor import Governor, Grant, ParkDecision, Refusal, WantedCall
from batchd.lifecycle import Lifecycle, inputs
from batchd.records import FailureKind, Purpose

#: How the journal's text of an answer begins, and of a failure.
_ANSWERED = b'["CallAnswered"'
_FAILED = b'["CallFailed"'


@dataclass(slots=True, eq=False, repr=False)
class Calls:
    """Serves the calls of running tasks."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _governor: Governor
    _lessons: Lessons

    def record(self, active: ActiveAttempt, record: wire.Record) -> None:
        """Make events durable, then acknowledge them."""
        active.asks()
        self._heard(record)
        self._settle(active, record.events)
        self._spawn(active, self._record(active, record))

    def ask(self, active: ActiveAttempt, ask: wire.Ask) -> None:
        """Make the call's events durable; answer when the governor does."""
        self._heard(ask)
        active.asks()
        # First the call before: its permit may be the very one that this request waits for.
        self._settle(active, ask.events)
        if active.stop is not None:
            self._spawn(active, self._deny(active, ask, active.stop))
            return
        active.waiting = ask
        call = self._call(active, ask)
        active.lines().asks(ask, call.tier, again=False)
        self._governor.ask(call, partial(self._decided, active))
        self._flush(active)

    def failed(self, active: ActiveAttempt, failed: wire.Failed) -> None:
        """Serve a call that failed, like ``ask``."""
        governor, ask = self._governor, failed.ask
        active.asks()
        if active.stop is not None:
            governor.released(active.ref, failed.failure)
            self._spawn(active, self._deny(active, ask, active.stop))
            return
        provider = ask.model.partition("/")[0]
        own = active.setup(Purpose.AGENT).name.partition("/")[0]
        if failed.failure.kind is FailureKind.AUTH and active.worker.bar(provider, own):
            # It is that machine's key: another one's worker takes the task up.
            governor.released(active.ref)
            back = Suspended(
                at=time.time(), cause="drain", message=f"{provider} refuses the key there"
            )
            self._spawn(active, self._deny(active, ask, back))
            return
        active.waiting = ask
        self._heard(ask)
        call = self._call(active, ask)
        active.lines().asks(ask, call.tier, again=True)
        governor.failed(call, failed.failure, partial(self._decided, active))
        self._flush(active)

    def _heard(self, message: wire.Ask | wire.Record) -> None:
        """Take what a message brings along of providers and models."""
        self._governor.heard(message.limits)
        if message.lessons:
            self._lessons.learned(message.lessons)

    def lost(self, active: ActiveAttempt) -> None:
        """Take back the request of a worker that has died, if it waits:
        to grant it would set money aside for a call that is never made.
        """
        if active.waiting is not None and self._governor.withdraw(active.ref):
            active.waiting = None

    def stop(self, active: ActiveAttempt, event: CancelRequested | Suspended) -> bool:
        """End the task with ``event`` at its next request; return whether one waited."""
        active.stop = event
        ask = active.waiting
        if ask is None or not self._governor.withdraw(active.ref):
            return False
        active.waiting = None
        self._spawn(active, self._deny(active, ask, event))
        return True

    def _spawn(
        self, active: ActiveAttempt, write: Coroutine[Any, Any, object]
    ) -> asyncio.Task[object]:
        return active.writing(main_loop.spawn(write))

    def _settle(self, active: ActiveAttempt, bodies: Sequence[msgspec.Raw]) -> None:
        """Give back the permit of a call that has its answer among these events.

        Or its failure, where the agent itself sees to it: an overflow is answered by a shorter
        request, and a task whose own time is over asks no more.
        """
        for body in bodies:
            if bytes(body).startswith(_FAILED):
                failed = vocabulary.decode(bytes(body))
                assert isinstance(failed, CallFailed)
                if failed.failure.kind is FailureKind.CONTEXT_OVERFLOW:
                    self._governor.answered(active.ref, 0.0)
                else:
                    failure = failed.failure
                    cut = failure.kind is FailureKind.TIMEOUT and failure.http_status is None
                    self._governor.released(active.ref, failure, cut=cut)
            elif bytes(body).startswith(_ANSWERED):
                event = vocabulary.decode(bytes(body))
                assert isinstance(event, CallAnswered)
                cost = event.paid(active.setup(event.purpose).price)
                self._governor.answered(
                    active.ref,
                    cost.total if cost else 0.0,
                    event.answer.usage,
                    tier=event.tier,
                    believed=event.disbelieved is None,
                )

    def _call(self, active: ActiveAttempt, ask: wire.Ask) -> WantedCall:
        setup = active.setup(ask.purpose)
        assert active.task is not None, "it has begun"
        return WantedCall(
            ref=active.ref,
            model=ask.model,
            price=setup.price,
            input_tokens=ask.input_tokens,
            max_output_tokens=ask.max_output_tokens,
            tier=setup.service_tier,
            fallback_s=setup.tier_fallback_s,
            timeout_s=active.task.limits.call_timeout_s,
        )

    def _decided(self, active: ActiveAttempt, decision: Grant | Refusal | ParkDecision) -> None:
        """The governor has answered the request that waits."""
        ask, active.waiting = active.waiting, None
        assert ask is not None, "the governor answers once"
        now = time.time()
        if isinstance(decision, Grant):
            self._spawn(active, self._grant(active, ask, decision))
        elif isinstance(decision, ParkDecision):
            active.park = decision
            parked = Suspended(at=now, cause="park", message=decision.message)
            self._spawn(active, self._deny(active, ask, parked))
        else:
            denied = CallDenied(
                at=now, status=decision.status, reason=decision.reason, error=decision.error
            )
            self._spawn(active, self._deny(active, ask, denied))

    def _flush(self, active: ActiveAttempt) -> None:
        """A request that has to wait is a flush all the same: commit its events now."""
        ask = active.waiting
        if ask is not None and ask.events:
            active.waiting = replace(ask, seq=ask.seq + len(ask.events), events=())
            active.flushed = self._spawn(active, self._commit(active, ask.seq, ask.events))

    async def _record(self, active: ActiveAttempt, record: wire.Record) -> None:
        if await self._commit(active, record.seq, record.events):
            seq = record.seq + len(record.events)
            active.answer(wire.Ack(active.ref, active.attempt, seq))

    async def _grant(self, active: ActiveAttempt, ask: wire.Ask, grant: Grant) -> None:
        call = self._call(active, ask)
        until = time.time() + call.timeout_s

        def begins() -> CallStarted | None:
            if time.time() > until:
                return None  # at this hour it may cost more than is set aside
            return CallStarted(
                at=time.time(),
                purpose=ask.purpose,
                input_tokens=ask.input_tokens,
                max_output_tokens=ask.max_output_tokens,
                reserved_usd=grant.reserved_usd,
                reserved_tokens=grant.reserved_tokens,
                tier=grant.tier,
                waited_s=active.waited_s(),
            )

        begun = await self._commit(active, ask.seq, ask.events, begins)
        if isinstance(begun, CallStarted):
            active.answer(wire.Granted(active.ref, active.attempt, begun))
            return
        self._governor.released(active.ref)
        if begun and active.stop is not None:
            self._answer(active, active.stop)
        elif begun:
            active.waiting = replace(ask, seq=ask.seq + len(ask.events), events=())
            self._governor.ask(call, partial(self._decided, active))

    async def _deny(
        self, active: ActiveAttempt, ask: wire.Ask, event: CallDenied | CancelRequested | Suspended
    ) -> None:
        if await self._commit(active, ask.seq, ask.events):
            self._answer(active, event)

    def _answer(
        self, active: ActiveAttempt, event: CallDenied | CancelRequested | Suspended
    ) -> None:
        event = replace(event, at=time.time(), waited_s=active.waited_s())
        body = msgspec.Raw(vocabulary.encode(event))
        active.answer(wire.Denied(ref=active.ref, attempt=active.attempt, event=body))

    async def _commit(
        self,
        active: ActiveAttempt,
        seq: int,
        events: Sequence[msgspec.Raw],
        begins: Callable[[], CallStarted | None] | None = None,
    ) -> CallStarted | bool:
        """Store events and pass them on;
        False, and the worker gets a Nack, where the attempt is stale.

        ``begins``: makes a call's beginning, to be stored behind them and returned; None: it is to
        be asked for again. Not that of a task that is to stop. It is made at each try: the disk may
        be full for hours.
        """
        ref, attempt = active.ref, active.attempt
        call: CallStarted | None = None

        def record() -> Awaitable[list[Event]]:
            nonlocal call
            # At each try: it may be cancelled while it waits for room.
            urgent = active.stop is not None
            call = begins() if begins and not urgent else None
            return self._store.record(ref, attempt, seq, events, call, urgent=urgent)

        if active.flushed is not None and active.flushed is not asyncio.current_task():
            await active.flushed
        try:
            stored = await self._store.durable(record) if begins or events else []
        except (StaleAttemptError, ValueError):  # ValueError: no events; a worker gone mad
            active.answer(wire.Nack(ref, attempt))
            return False
        for event in (*stored, call) if call else stored:
            self._pass_on(active, event)
        return call or True

    def _pass_on(self, active: ActiveAttempt, event: Event) -> None:
        """Pass on what a durable event says."""
        if isinstance(event, TaskFinished):
            active.finished = event
            self._lifecycle.take(inputs.Finished(active.ref, event.status))
        elif isinstance(event, Suspended):
            active.suspended = event
        active.lines().event(event)
        main_loop.tell(lambda listener: listener.task_event(active.ref, event))
