"""Anthropic's Messages: turns of blocks, thinking signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from batchd.records import Answer, Usage
from standin import families, opaque
from standin.dialects import message_body, message_order, parameters
from standin.dialects.anthropic import (
    REFUSALS,
    error,
    headers,
    invalid,
    key,
    models,
    refusal,
)
from standin.dialects.message_body import MessagesBody
from standin.families import Family
from standin.opaque import Seal
from standin.simulated_request import (
    AnswerEnd,
    Bill,
    CacheRules,
    Caller,
    Heading,
    SimulatedRequest,
    end,
    escaped,
    prompt_of,
    purpose,
)

__all__ = ["error", "headers", "invalid", "key", "models", "name", "nothing", "parse", "refusal"]
name = "messages"
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "type": "message", "role": "assistant", "content": []}'
#: Seconds that what was written to the cache stays there.
_TTL: Mapping[str, int] = {"5m": 300, "1h": 3600}
_LOOKBACK = 20
_encode = msgspec.json.Encoder().encode


def parse(data: bytes, caller: Caller) -> SimulatedRequest:
    """Return the request in a body.

    Raises ``InvalidRequestError`` where Anthropic would refuse it.
    """
    body = message_body.body(data)
    family = families.of(body.model) or families.MESSAGES
    parameters.check(body, family, caller.headers)
    owner = Seal(
        model=body.model,
        account=caller.account,
        user="",
        prefix="",
        beside="",
        tokens=0,
    )
    read = message_order.read(body, family, owner)
    native = bool(body.tools)
    bound = body.output_config is not None and body.output_config.format is not None
    return SimulatedRequest(
        model=body.model,
        family=family,
        turns=read.turns,
        segments=read.segments,
        raws=read.raws,
        first_user=prompt_of(next((t.text for t in read.turns if t.role == "user"), "")),
        purpose=purpose(read.turns, native=native, bound=bound),
        turn=sum(t.role == "assistant" for t in read.turns),
        native=native,
        stop=body.stop_sequences,
        max_output=body.max_tokens,
        cache=_cache(body, family, read, caller),
        opaque=read.opaque,
        removed=read.removed,
        thinks=family.thinks if body.thinking is None else body.thinking.type != "disabled",
        account=caller.account,
        writer=_Writer(body, msgspec.structs.replace(owner, prefix=read.prefix)),
    )


def _cache(
    body: MessagesBody, family: Family, read: message_body.MessagesPrompt, caller: Caller
) -> CacheRules:
    return CacheRules(
        scope=(caller.account, body.model),
        breakpoints=tuple((at, _TTL[ttl]) for at, ttl in read.breakpoints),
        minimum=family.cache_minimum,
        lookback=_LOOKBACK,
    )


_STOPPED: Mapping[AnswerEnd, str] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
    "full": "model_context_window_exceeded",
    "pause": "pause_turn",
}


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the answer to one request."""

    body: MessagesBody
    #: Whose its thinking is to be.
    owner: Seal

    def whole(self, heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        return escaped(_encode(self._message(heading, answer, bill)))

    def _message(self, heading: Heading, answer: Answer, bill: Bill | None) -> dict[str, Any]:
        reason = "stop_sequence" if heading.stopped else _STOPPED[end(answer)]
        refused = {"type": "refusal", "category": "cyber", "explanation": answer.content or None}
        body: dict[str, Any] = {
            "id": f"msg_{heading.id}",
            "type": "message",
            "role": "assistant",
            "model": heading.model,
            "content": self._content(heading, answer),
            "stop_reason": reason,
            "stop_sequence": heading.stopped or None,
            "stop_details": refused if reason == "refusal" else None,
        }
        if bill is not None:
            body["usage"] = _usage(bill)
        return body

    def failed(self, heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error."""
        return error(REFUSALS["error-200"], heading.id)

    def _content(self, heading: Heading, answer: Answer) -> list[dict[str, Any]]:
        found = [self._thinking(heading, answer)] if answer.reasoning else []
        if answer.content and end(answer) != "refusal":
            found.append({"type": "text", "text": answer.content, "citations": None})
        found += (
            {
                "type": "tool_use",
                "id": f"toolu_{call.id}",
                "name": call.name,
                "input": message_body.given(call.arguments),
            }
            for call in answer.tool_calls
        )
        return found

    def _thinking(self, heading: Heading, answer: Answer) -> dict[str, Any]:
        thinking = self.body.thinking
        shown = thinking is None or thinking.display != "omitted"
        text = answer.reasoning if shown and not heading.redacted else ""
        seal = msgspec.structs.replace(
            self.owner,
            beside=opaque.digest(text.encode()),
            tokens=heading.thought_tokens,
            paused=end(answer) == "pause",
        )
        blob = opaque.sealed(seal, heading.sealed_size)
        if heading.redacted:
            return {"type": "redacted_thinking", "data": blob}
        return {"type": "thinking", "thinking": text, "signature": blob}


def _usage(bill: Bill) -> dict[str, Any]:
    """Return what an answer came to:
    the input is what neither came from the cache nor went there.
    """
    usage: Usage = bill.usage
    fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - bill.long_writes,
            "ephemeral_1h_input_tokens": bill.long_writes,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard" if bill.tier == "default" else bill.tier,
    }
