"""Answers as chat completions carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from batchd.records import Answer, Usage
from standin.dialects import openai
from standin.simulated_request import AnswerEnd, Bill, Heading, end, escaped

#: What other dialects have a word for, and this one has not.
_FINISHED: Mapping[AnswerEnd, AnswerEnd] = {"refusal": "stop", "full": "length", "pause": "stop"}
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes answers."""

    @staticmethod
    def whole(heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        return _completion(heading, answer, bill)

    @staticmethod
    def failed(heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error, as OpenRouter sends it."""
        del heading
        return openai.error(openai.REFUSALS["error-200"])


WRITER = _Writer()


def _completion(heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.tool_calls and not answer.content else answer.content,
    }
    if end(answer) == "refusal":
        message |= {"content": None, "refusal": answer.content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = _calls(answer)
    body = {
        "id": f"chatcmpl-{heading.id}",
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": _FINISHED.get(end(answer), end(answer)),
            }
        ],
    }
    if bill is not None:
        body["usage"] = _usage(bill.usage)
        body["service_tier"] = bill.tier
    return escaped(_encode(body))


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.tool_calls
    ]


def _usage(usage: Usage) -> dict[str, Any]:
    cached = {"cached_tokens": usage.cached_input_tokens}
    if usage.cache_write_tokens:
        cached["cache_write_tokens"] = usage.cache_write_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
