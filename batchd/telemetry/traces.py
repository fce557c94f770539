"""Traces: hears what tasks do, makes spans of it,
and hands them to OpenTelemetry's processor, which sends them from a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from batchd import __version__, decoders, views
from batchd.config.sections import TracesSection, loopback
from batchd.daemon.listeners import Listener, LoopLink, StatusDesk
from batchd.errors import NotPossibleError
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
from batchd.log import Action
from batchd.records import Batch, ModelSetup, Purpose, Ref
from batchd.results import timestamp
from batchd.store.store import Store
from batchd.telemetry import spans
from batchd.telemetry.spans import Span, Trace

#: How often spans are sent (milliseconds), and how many at a time.
_EVERY_MS = 1000
_BATCH = 512
#: Spans that wait at most; then the oldest are lost. One with texts may have 64 KB.
_WAITING, _WAITING_WITH_TEXTS = 16_384, 1024
#: What a receiver gets to take some, tries included; and what the end gets to send the rest.
_PATIENCE_S, _END_S = 10.0, 2.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("batchd", __version__)
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


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which reports whether the receiver takes what it sends."""

    def __init__(self, config: TracesSection, headers: Mapping[str, str], line: LoopLink) -> None:
        # Its lines, one for each try, would fill the log.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._line = line
        self._trouble = NotPossibleError(
            f"the receiver of traces, {config.endpoint}, does not take them, and those of this"
            " time are lost: `batchd check` asks it and says why"
        )
        local = loopback(urlsplit(config.address).hostname or "")
        session = requests.Session()
        # What is on this machine is not asked for by way of a proxy, nor packed.
        session.trust_env = not local
        session.hooks["response"] = [_taken]
        super().__init__(
            endpoint=config.address,
            headers=dict(headers),
            timeout=_PATIENCE_S,
            compression=Compression.NoCompression if local else Compression.Gzip,
            session=session,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; what their receiver's answer makes the library throw, it logs itself."""
        result = SpanExportResult.FAILURE
        try:
            result = super().export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self._line.worked()
            else:
                self._line.failed(self._trouble)
        return result


def _taken(answer: requests.Response, **_: object) -> None:
    """Raise where a receiver only says where else it is: the library counts that as taken."""
    if answer.is_redirect:
        raise requests.HTTPError(f"it answers {answer.status_code}", response=answer)


class Traces(Listener):
    """The traces: makes spans."""

    def __init__(self, config: TracesSection, headers: Mapping[str, str]) -> None:
        self._config = config
        self._headers = headers
        self._content = config.content
        about = {"service.name": config.service, "service.version": __version__}
        self._resource = Resource.create(about)
        #: Takes nothing until the daemon begins to work.
        self._processor = SpanProcessor()
        self._active: dict[Ref, _Active] = {}

    def opened(self, desk: StatusDesk, _store: Store) -> None:
        """Begin to send."""
        line = LoopLink(desk, Action.TRACES_TROUBLE)
        self._processor = BatchSpanProcessor(
            _Exporter(self._config, self._headers, line),
            max_queue_size=_WAITING_WITH_TEXTS if self._content else _WAITING,
            schedule_delay_millis=_EVERY_MS,
            max_export_batch_size=_BATCH,
        )

    async def close(self) -> None:
        """Send what there is, if the receiver takes it at once."""
        # It waits for half a minute itself, and takes no shorter time.
        end = threading.Thread(target=self._processor.shutdown, name="traces-end", daemon=True)
        end.start()
        await asyncio.to_thread(end.join, _END_S)

    # What the daemon reports

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """Remember what its spans are parts of."""
        self._leave(ref)
        trace = Trace.of(ref.batch, ref.task, timestamp(batch.received_at))
        if trace.sampled(self._config.ratio):
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
                self._send(spans.answered(trace, setup, call, event, content=content))
            case CallFailed() if call := active.call:
                active.call = None
                self._send(spans.failed(trace, active.setup(call.purpose), call, event))
            case Suspended() | TaskFinished():
                self._mark(trace, event)
                self._leave(ref)
            case _:
                self._mark(trace, event)

    def _mark(self, trace: Trace, event: Event) -> None:
        """Make the span that an event's view has, if it has one."""
        if mark := views.of(event).span(event):
            self._send(spans.marked(trace, mark, event.at, content=self._content))

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Make the span of the task itself;
        it may be of a task that no worker of this daemon has had.
        """
        result = _RESULT.decode(finished.result)
        trace = Trace.of(ref.batch, ref.task, result.timing.queued_at)
        if trace.sampled(self._config.ratio):
            self._send(spans.finished(trace, finished, result, content=self._content))

    def _leave(self, ref: Ref) -> None:
        """Forget a task's attempt; a call under way will have no outcome any more."""
        active = self._active.pop(ref, None)
        if active is not None and (call := active.call):
            setup = active.setup(call.purpose)
            self._send(spans.unsettled(active.trace, setup, call, time.time()))

    def _send(self, span: Span) -> None:
        def context(span_id: int) -> SpanContext:
            return SpanContext(span.trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)

        readable = ReadableSpan(
            name=span.name,
            context=context(span.span_id),
            parent=context(span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=round(span.start * 1e9),
            end_time=round(span.end * 1e9),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(readable)
