"""Traces: hears what tasks do, makes spans of it, and hands them to the thread that sends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from batchd import decoders, views
from batchd.actions import Action
from batchd.config import telemetry
from batchd.daemon.desk import StatusDesk
from batchd.daemon.listeners import Listener
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    Event,
    Suspended,
    TaskFinished,
    Terms,
)
from batchd.formats import ResultV1
from batchd.records import Batch, ModelSetup, Purpose, Ref
from batchd.results import timestamp
from batchd.telemetry import spans
from batchd.telemetry.loop_link import LoopLink
from batchd.telemetry.sending import SpanSender
from batchd.telemetry.spans import Trace

_RESULT: msgspec.json.Decoder[ResultV1] = decoders.decoder(ResultV1)


@dataclass(slots=True, eq=False)
class _Active:
    """A task that a worker works on."""

    trace: Trace
    terms: Terms
    #: A request without an outcome so far.
    call: CallStarted | None = None

    def setup(self, purpose: Purpose) -> ModelSetup:
        return self.terms.judge if purpose is Purpose.JUDGE else self.terms.model


class Traces(Listener):
    """The traces: makes spans."""

    def __init__(self, config: telemetry.TracesSection, headers: Mapping[str, str]) -> None:
        self._ratio = config.ratio
        self._content = config.content
        self._sender = SpanSender(config, headers)
        self._active: dict[Ref, _Active] = {}

    def opened(self, desk: StatusDesk) -> None:
        """Begin to send."""
        self._sender.start(LoopLink(desk, Action.TRACES_TROUBLE))

    async def close(self) -> None:
        """Send what there is, if the receiver takes it at once."""
        await asyncio.to_thread(self._sender.close)

    # What the daemon reports

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """Remember what its spans are parts of."""
        self._leave(ref)
        trace = Trace.of(ref.batch, ref.task, timestamp(batch.received_at))
        if trace.sampled(self._ratio):
            self._active[ref] = _Active(trace, terms)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Make a span of what has ended."""
        active = self._active.get(ref)
        if active is None:
            return
        trace, content = active.trace, self._content
        match event:
            case CallStarted():
                active.call = event
            case CallAnswered() if call := active.call:
                active.call = None
                setup = active.setup(call.purpose)
                self._sender.put(spans.answered(trace, setup, call, event, content=content))
            case CallFailed() if call := active.call:
                active.call = None
                self._sender.put(spans.failed(trace, active.setup(call.purpose), call, event))
            case Suspended() | TaskFinished():
                self._mark(trace, event)
                self._leave(ref)
            case _:
                self._mark(trace, event)

    def _mark(self, trace: Trace, event: Event) -> None:
        """Make the span that an event's view has, if it has one."""
        if mark := views.of(event).span(event):
            self._sender.put(spans.marked(trace, mark, event.at, content=self._content))

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Make the span of the task itself;
        it may be of a task that no worker of this daemon has had.
        """
        result = _RESULT.decode(finished.result)
        trace = Trace.of(ref.batch, ref.task, result.timing.queued_at)
        if trace.sampled(self._ratio):
            self._sender.put(spans.finished(trace, finished, result, content=self._content))

    def _leave(self, ref: Ref) -> None:
        """Forget a task's attempt; a call under way will have no outcome any more."""
        active = self._active.pop(ref, None)
        if active is not None and (call := active.call):
            setup = active.setup(call.purpose)
            self._sender.put(spans.unsettled(active.trace, setup, call, time.time()))
