"""The sender of spans, from a thread of its own:
what a receiver that is down, or hangs, cannot take yet is kept for later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from batchd import __version__
from batchd.actions import Action
from batchd.config import telemetry
from batchd.config.values import loopback
from batchd.errors import NotPossibleError
from batchd.log import get_logger
from batchd.telemetry.limited import LimitedSession
from batchd.telemetry.loop_link import LoopLink
from batchd.telemetry.span_queue import SpanQueue
from batchd.telemetry.spans import Span

#: How often spans are sent, and how many at a time.
_EVERY_S = 1.0
_BATCH = 512
#: What one request may take, all of it, and the longest pause after one that failed.
_PATIENCE_S = 5.0
_LONGEST_PAUSE_S = 30.0
#: What the end gets: to send the rest, then to give up what hangs.
_END_S, _GIVE_UP_S = 1.5, 0.3
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
#: Refusals that are no matter of the request: it is made again.
_PASSING = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class SpanSender:
    """The sender of spans: takes them on the daemon's loop, in a microsecond."""

    def __init__(self, config: telemetry.TracesSection, headers: Mapping[str, str]) -> None:
        # Its lines, one for each try, would fill the log: what is wrong is reported by ``line``.
        logging.getLogger("opentelemetry").propagate = False
        self._waiting = SpanQueue()
        self._endpoint = config.endpoint
        #: With what status the receiver refused last; 0: it did not.
        self._status = 0
        local = loopback(urlsplit(config.address).hostname or "")
        session = requests.Session()
        session.hooks["response"] = [self._heard]
        # What is on this machine is not asked for by way of a proxy, nor packed.
        session.trust_env = not local
        self._limited = LimitedSession()
        session.mount("http://", self._limited)
        session.mount("https://", self._limited)
        self._exporter = OTLPSpanExporter(
            endpoint=config.address,
            headers=dict(headers),
            timeout=_PATIENCE_S,
            compression=Compression.NoCompression if local else Compression.Gzip,
            session=session,
        )
        about = {"service.name": config.service, "service.version": __version__}
        self._resource = Resource.create(about)
        self._scope = InstrumentationScope("batchd", __version__)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, line: LoopLink) -> None:
        """Begin to send; ``line``: where it reports that this fails."""
        self._thread = threading.Thread(target=self._work, args=(line,), name="traces", daemon=True)
        self._thread.start()
        threading.Thread(target=self._limited.watch, name="traces-limit", daemon=True).start()

    def put(self, span: Span) -> None:
        """Queue a span."""
        self._waiting.put(span)

    def close(self) -> None:
        """Send what waits, unless that takes longer than a moment."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_END_S)
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            self._thread.join(_GIVE_UP_S)

    def _work(self, line: LoopLink) -> None:
        pause_s = _EVERY_S
        while not self._closing.wait(pause_s):
            pause_s = _EVERY_S if self._send(line) else min(2 * pause_s, _LONGEST_PAUSE_S)
        self._send(line)

    def _send(self, line: LoopLink) -> bool:
        """Send all that waits; return whether the receiver took it."""
        while batch := self._waiting.take(_BATCH):
            self._status = 0
            readable = [self._readable(span) for span in batch]
            if not self._taken(readable):
                line.failed(self._explained())
                if (self._status and self._status not in _PASSING) or not _sound(readable):
                    self._waiting.lose(len(batch))  # it would be refused again
                else:
                    self._waiting.put_back(batch)
                return False
            line.worked()
            if lost := self._waiting.lost():
                message = f"{lost:,} spans were lost while {self._endpoint} took none"
                get_logger().warning(Action.TRACES_TROUBLE, message=message)
        return True

    def _taken(self, spans: Sequence[ReadableSpan]) -> bool:
        try:
            with self._limited.within(_PATIENCE_S):
                taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 (what a receiver's answer makes the library throw must not end the thread)
            return False
        return taken and not self._limited.broken_off

    def _heard(self, response: requests.Response, *_: Any, **__: Any) -> None:
        # With a good one something else went wrong: the answer did not end.
        self._status = response.status_code if response.status_code >= HTTPStatus.BAD_REQUEST else 0

    def _explained(self) -> NotPossibleError:
        said, fix = "cannot be reached", "start it, or check the network and [traces] endpoint"
        if self._status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            fix = "put a valid key where [traces] says, and restart the daemon"
        if self._limited.broken_off:
            said = f"takes longer than {_PATIENCE_S:g} s to answer"
        if self._status:
            said = f"answers with HTTP {self._status}"
        return NotPossibleError(f"the receiver of traces, {self._endpoint}, {said}: {fix}")

    def _readable(self, span: Span) -> ReadableSpan:
        def context(span_id: int) -> SpanContext:
            return SpanContext(span.trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)

        return ReadableSpan(
            name=span.name,
            context=context(span.span_id),
            parent=context(span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=round(span.start * 1e9),
            end_time=round(span.end * 1e9),
            instrumentation_scope=self._scope,
        )


def _sound(spans: Sequence[ReadableSpan]) -> bool:
    """Return whether spans can be written down at all:
    a number may be too large, a text no Unicode.
    """
    try:
        encode_spans(spans)
    except (ValueError, TypeError, OverflowError):
        return False
    return True
