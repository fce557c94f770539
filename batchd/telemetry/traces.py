"""Traces: hears what tasks do, makes spans of it,
and hands them to OpenTelemetry's processor, which sends them from a thread of its own.

No span stays open: each is made at its end, a task's own, the parent of all, last of all, from its
result. The ids follow from the task and from what the journal says, so that what a daemon sent
before it died, and what the next one sends, are parts of one trace.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from batchd import decoders, views
from batchd.config.sections import TracesSection, loopback
from batchd.daemon.listeners import Listener, LoopLink, StatusDesk
from batchd.errors import NotPossibleError, cut
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
from batchd.records import STANDARD, Batch, Price, Ref, TaskStatus
from batchd.results import timestamp
from batchd.store.store import Store
from batchd.version import __version__
from batchd.views.kinds import explained, judged, span_name
from batchd.views.view import tokens

#: Characters of one text in a span; a receiver takes only so much.
_TEXT = 16_384
_AGENT = "batchd"
#: How often spans are sent (milliseconds), and how many at a time.
_EVERY_MS = 1000
_BATCH = 512
#: Spans that wait at most; then the oldest are lost. One with texts may have 64 KB.
_WAITING, _WAITING_WITH_TEXTS = 16_384, 1024
#: What a receiver gets to take some, tries included; and what the end gets to send the rest.
_PATIENCE_S, _END_S = 10.0, 2.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("batchd", __version__)


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace of one task."""

    id: int
    #: The span of the task itself.
    root: int
    #: ``gen_ai.conversation.id``.
    conversation: str

    @classmethod
    def of(cls, batch: str, task: str, queued_at: str) -> Trace:
        """Return the trace of a task.

        A batch's name is one spool's own; together with the moment, the world's.
        """
        conversation = f"{batch}/{task}"
        digest = hashlib.blake2b(f"{conversation}@{queued_at}".encode(), digest_size=24).digest()
        return cls(_number(digest[:16]), _number(digest[16:]), conversation)

    def sampled(self, ratio: float) -> bool:
        """Return whether it is one of this part of all traces:
        always the same ones, as OpenTelemetry picks them.
        """
        return self.id & (1 << 64) - 1 < round(ratio * (1 << 64))

    def child(self, kind: str, at: float) -> int:
        """Return the id of a span below the task's."""
        mark = f"{self.id:x}/{kind}@{at!r}".encode()
        return _number(hashlib.blake2b(mark, digest_size=8).digest())


@dataclass(slots=True, eq=False)
class _Active:
    """A task that a worker works on."""

    trace: Trace
    terms: Terms
    #: A request without an outcome so far.
    call: CallStarted | None = None


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which reports whether the receiver takes what it sends."""

    def __init__(self, config: TracesSection, headers: Mapping[str, str], line: LoopLink) -> None:
        # Its lines, one for each try, would fill the log.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._line = line
        self._whose = f"the receiver of traces, {config.endpoint},"
        #: What became of the last try.
        self._outcome = ""
        local = loopback(urlsplit(config.address).hostname or "")
        session = requests.Session()
        # What is on this machine is not asked for by way of a proxy, nor packed.
        session.trust_env = not local
        session.hooks["response"] = [self._answered]
        super().__init__(
            endpoint=config.address,
            headers=dict(headers),
            timeout=_PATIENCE_S,
            compression=Compression.NoCompression if local else Compression.Gzip,
            session=session,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; what their receiver's answer makes the library throw, it logs itself."""
        result, self._outcome = SpanExportResult.FAILURE, "cannot be reached"
        try:
            result = super().export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self._line.worked()
            else:
                why = f"{self._whose} {self._outcome}, and spans of this time are lost"
                fix = "start it, or correct its address and headers in [traces]"
                self._line.failed(NotPossibleError(f"{why}: {fix}"))
        return result

    def _answered(self, answer: requests.Response, **_: object) -> None:
        """Raise where a receiver only says where else it is: the library counts that as taken."""
        self._outcome = f"answers with HTTP {answer.status_code}"
        if answer.is_redirect:
            raise requests.HTTPError(self._outcome, response=answer)


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
        match event:
            case CallStarted():
                active.call = event
            case CallAnswered() if call := active.call:
                price = active.terms.setup(call.purpose).price
                said = _answered(event, price, content=self._content)
                self._end_call(active, call, event.at, said)
            case CallFailed(failure=failure) if call := active.call:
                status = {"http.response.status_code": failure.http_status}
                said = {"error.type": failure.kind.value, **status}
                self._end_call(active, call, event.at, said, failure.message)
            case Suspended() | TaskFinished():
                self._mark(active.trace, event)
                self._leave(ref)
            case _:
                self._mark(active.trace, event)

    def _leave(self, ref: Ref) -> None:
        """Forget a task's attempt; a call under way will have no outcome any more."""
        active = self._active.pop(ref, None)
        if active is not None and (call := active.call):
            said = {"error.type": "unsettled"}
            self._end_call(active, call, time.time(), said, "its worker is gone")

    def _end_call(
        self,
        active: _Active,
        call: CallStarted,
        at: float,
        said: Mapping[str, Any],
        error: str | None = None,
    ) -> None:
        """Make the span of a request; ``said``: what its outcome adds to its attributes."""
        active.call = None
        trace, setup = active.trace, active.terms.setup(call.purpose)
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": setup.provider,
            "gen_ai.request.model": setup.model,
            "gen_ai.request.max_tokens": call.max_output_tokens,
            "gen_ai.conversation.id": trace.conversation,
            "batchd.purpose": call.purpose.value,
            "batchd.waited_s": call.waited_s,
            **said,
        }
        own, times = trace.child("call", call.at), (call.at, max(call.at, at))
        name = span_name(setup.model)
        self._send(trace, own, name, times, attributes, error, kind=SpanKind.CLIENT)

    def _mark(self, trace: Trace, event: Event) -> None:
        """Make the span that an event's view has, if it has one."""
        mark = views.of(event).span(event)
        if mark is None:
            return
        attributes = {"gen_ai.conversation.id": trace.conversation, **mark.attributes}
        if self._content:
            attributes |= mark.content
        times = event.at - max(0.0, mark.seconds), event.at
        self._send(trace, trace.child(mark.key, event.at), mark.name, times, attributes, mark.error)

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Make the span of the task itself, from its first start to its end;
        it may be of a task that no worker of this daemon has had.
        """
        result = decoders.decode(finished.result, ResultV1)
        trace = Trace.of(ref.batch, ref.task, result.timing.queued_at)
        if not trace.sampled(self._config.ratio):
            return
        attributes = _finished(trace, result, content=self._content)
        error, began = None, result.timing.started_at
        if result.status in {TaskStatus.ERROR, TaskStatus.TIMEOUT}:
            attributes["error.type"] = result.reason.value if result.reason else "_OTHER"
            error = result.error.message if result.error else result.status.value
        start = datetime.fromisoformat(began).timestamp() if began else finished.at
        name = f"invoke_agent {_AGENT}"
        self._send(trace, trace.root, name, (start, finished.at), attributes, error)

    def _send(
        self,
        trace: Trace,
        span_id: int,
        name: str,
        times: tuple[float, float],
        attributes: Mapping[str, Any],
        error: str | None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """Hand on a span that has ended; ``times``: its start and its end, in seconds since the
        epoch; ``error``: what went wrong, for people. What is None is no attribute.
        """

        def context(own: int) -> SpanContext:
            return SpanContext(trace.id, own, is_remote=False, trace_flags=_SAMPLED)

        start, end = times
        readable = ReadableSpan(
            name=name,
            context=context(span_id),
            parent=None if span_id == trace.root else context(trace.root),
            resource=self._resource,
            attributes={k: v for k, v in attributes.items() if v is not None},
            kind=kind,
            status=Status() if error is None else Status(StatusCode.ERROR, error),
            start_time=round(start * 1e9),
            end_time=round(end * 1e9),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(readable)


# Attributes, by OpenTelemetry's conventions for generative AI


def _answered(event: CallAnswered, price: Price | None, *, content: bool) -> dict[str, Any]:
    """Return what an answer adds to its request."""
    answer, usage = event.answer, event.answer.usage
    cost = event.paid(price)
    said: dict[str, Any] = {
        "gen_ai.response.finish_reasons": [answer.finish_reason],
        **tokens(usage),
        "gen_ai.response.model": answer.model or None,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "batchd.cost_usd": None if cost is None else cost.total,
        "batchd.service_tier": None if event.tier == STANDARD else event.tier,
    }
    if content:
        calls = [
            {"type": "tool_call", "id": c.id, "name": c.name, "arguments": cut(c.arguments, _TEXT)}
            for c in event.calls
        ]
        said["gen_ai.output.messages"] = _said(
            "assistant", answer.content, *calls, finish_reason=answer.finish_reason
        )
    return said


def _finished(trace: Trace, result: ResultV1, *, content: bool) -> dict[str, Any]:
    """Return what a result says of its task."""
    provider, _, model = result.model.partition("/")
    usage, timing = result.usage, result.timing
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": _AGENT,
        "gen_ai.agent.version": __version__,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.conversation.id": trace.conversation,
        **tokens(usage),
        "batchd.batch": result.batch,
        "batchd.task": result.task,
        "batchd.status": result.status.value,
        "batchd.iterations": result.iterations,
        "batchd.attempts": result.attempts,
        "batchd.calls": usage.calls,
        "batchd.unsettled_calls": usage.unsettled_calls,
        "batchd.queued_s": timing.queued_s,
        "batchd.parked_s": timing.parked_s,
        "batchd.waited_s": timing.waited_s,
        "batchd.run_s": timing.run_s,
        "batchd.tags": list(result.tags),
        "batchd.cost_usd": result.cost.total,
        "batchd.reason": result.reason and result.reason.value,
    }
    if result.evaluation is not None:
        attributes |= judged(result.evaluation)
        attributes |= explained(result.evaluation) if content else {}
    if content:
        attributes["gen_ai.input.messages"] = _said("user", result.first_prompt)
        attributes["gen_ai.output.messages"] = _said("assistant", result.answer)
    return attributes


def _said(role: str, text: str, *more: Mapping[str, Any], **fields: str) -> str:
    """Return one message as the conventions want messages: JSON."""
    parts = [{"type": "text", "content": cut(text, _TEXT)}] if text else []
    return json.dumps([{"role": role, "parts": [*parts, *more], **fields}], ensure_ascii=False)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big") or 1  # 0 would mean none
