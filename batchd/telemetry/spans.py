"""Spans of what a task did, by OpenTelemetry's conventions for generative AI. Pure.

Nothing stays open: each span is made at its end, a task's own, the parent of all, last of all, from
its result. The ids follow from the task and from what the journal says, so that what a daemon sent
before it died, and what the next one sends, are parts of one trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchd import __version__
from batchd.errors import cut
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    TaskFinished,
)
from batchd.formats import ResultV1
from batchd.records import STANDARD, ModelSetup, TaskStatus
from batchd.views.kinds import explained, judged, span_name
from batchd.views.view import Mark, tokens

#: Characters of one text in a span; a receiver takes only so much.
_TEXT = 16_384
_AGENT = "batchd"


@dataclass(frozen=True, slots=True)
class Span:
    """One span that has ended."""

    trace_id: int
    span_id: int
    #: 0: it has none.
    parent_id: int
    name: str
    #: Seconds since the epoch.
    start: float
    end: float
    attributes: Mapping[str, Any]
    #: Whether it is a request to somebody else.
    client: bool = False
    #: What went wrong, for people; None: nothing did.
    error: str | None = None


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


def answered(
    trace: Trace, setup: ModelSetup, call: CallStarted, event: CallAnswered, *, content: bool
) -> Span:
    """Return the span of a request with its answer."""
    answer, usage = event.answer, event.answer.usage
    attributes = _request(trace, setup, call)
    attributes |= {
        "gen_ai.response.finish_reasons": [answer.finish_reason],
        **tokens(usage),
    }
    if answer.model:
        attributes["gen_ai.response.model"] = answer.model
    if usage.cache_write_tokens:
        attributes["gen_ai.usage.cache_creation.input_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if (cost := event.paid(setup.price)) is not None:
        attributes["batchd.cost_usd"] = cost.total
    if event.tier != STANDARD:
        attributes["batchd.service_tier"] = event.tier
    if content:
        calls = [
            {"type": "tool_call", "id": c.id, "name": c.name, "arguments": cut(c.arguments, _TEXT)}
            for c in event.calls
        ]
        attributes["gen_ai.output.messages"] = _said(
            "assistant", answer.content, *calls, finish_reason=answer.finish_reason
        )
    return _call_span(trace, call, event.at, attributes)


def failed(trace: Trace, setup: ModelSetup, call: CallStarted, event: CallFailed) -> Span:
    """Return the span of a request that brought no answer."""
    failure = event.failure
    attributes = _request(trace, setup, call)
    attributes["error.type"] = failure.kind.value
    if failure.http_status is not None:
        attributes["http.response.status_code"] = failure.http_status
    return _call_span(trace, call, event.at, attributes, failure.message)


def unsettled(trace: Trace, setup: ModelSetup, call: CallStarted, at: float) -> Span:
    """Return the span of a request whose outcome is not known: its worker died."""
    attributes = _request(trace, setup, call)
    attributes["error.type"] = "unsettled"
    return _call_span(trace, call, at, attributes, "its worker is gone")


def marked(trace: Trace, mark: Mark, at: float, *, content: bool) -> Span:
    """Return the span of an event that its view makes a mark of."""
    own = {"gen_ai.conversation.id": trace.conversation, **mark.attributes}
    return Span(
        trace_id=trace.id,
        span_id=trace.child(mark.key, at),
        parent_id=trace.root,
        name=mark.name,
        start=at - max(0.0, mark.seconds),
        end=at,
        attributes={**own, **mark.content} if content else own,
        error=mark.error,
    )


def finished(trace: Trace, event: TaskFinished, result: ResultV1, *, content: bool) -> Span:
    """Return the span of the task itself, from its first start to its end."""
    began = result.timing.started_at
    provider, _, model = result.model.partition("/")
    usage, timing = result.usage, result.timing
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": _AGENT,
        "gen_ai.agent.version": __version__,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.conversation.id": trace.conversation,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
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
    }
    if result.cost.total is not None:
        attributes["batchd.cost_usd"] = result.cost.total
    if result.evaluation is not None:
        attributes |= judged(result.evaluation)
        attributes |= explained(result.evaluation) if content else {}
    if result.reason is not None:
        attributes["batchd.reason"] = result.reason.value
    error = None
    if result.status in {TaskStatus.ERROR, TaskStatus.TIMEOUT}:
        attributes["error.type"] = result.reason.value if result.reason else "_OTHER"
        error = result.error.message if result.error else result.status.value
    if content:
        attributes["gen_ai.input.messages"] = _said("user", result.first_prompt)
        attributes["gen_ai.output.messages"] = _said("assistant", result.answer)
    return Span(
        trace_id=trace.id,
        span_id=trace.root,
        parent_id=0,
        name=f"invoke_agent {_AGENT}",
        start=datetime.fromisoformat(began).timestamp() if began else event.at,
        end=event.at,
        attributes=attributes,
        error=error,
    )


def _request(trace: Trace, setup: ModelSetup, call: CallStarted) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": setup.provider,
        "gen_ai.request.model": setup.model,
        "gen_ai.request.max_tokens": call.max_output_tokens,
        "gen_ai.conversation.id": trace.conversation,
        "batchd.purpose": call.purpose.value,
        "batchd.waited_s": call.waited_s,
    }


def _call_span(
    trace: Trace,
    call: CallStarted,
    end: float,
    attributes: dict[str, Any],
    error: str | None = None,
) -> Span:
    return Span(
        trace_id=trace.id,
        span_id=trace.child("call", call.at),
        parent_id=trace.root,
        name=span_name(attributes["gen_ai.request.model"]),
        start=call.at,
        end=max(call.at, end),
        attributes=attributes,
        client=True,
        error=error,
    )


def _said(role: str, text: str, *more: Mapping[str, Any], **fields: str) -> str:
    """Return one message as the conventions want messages: JSON."""
    parts = [{"type": "text", "content": cut(text, _TEXT)}] if text else []
    return json.dumps([{"role": role, "parts": [*parts, *more], **fields}], ensure_ascii=False)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big") or 1  # 0 would mean none
