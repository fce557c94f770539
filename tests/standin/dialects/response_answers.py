"""Answers as OpenAI's Responses carries them: a list of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from batchd.records import Answer, Usage
from standin import opaque
from standin.dialects import items
from standin.dialects.replay import Removal
from standin.dialects.response_body import ResponsesBody
from standin.opaque import Seal
from standin.simulated_request import AnswerEnd, Bill, Heading, end, ended, escaped

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ResponsesWriter:
    """Writes the answer to one request."""

    body: ResponsesBody
    #: Whose its reasoning is to be.
    owner: Seal
    removed: Sequence[Removal]
    effort: str

    def whole(self, heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        return escaped(_encode(self._response(heading, answer, bill)))

    def failed(self, heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error."""
        return _encode(self._response(heading, ended("", "failed"), None))

    def _response(self, heading: Heading, answer: Answer, bill: Bill | None) -> dict[str, Any]:
        body, reason = self.body, _INCOMPLETE.get(end(answer))
        failed = end(answer) == "failed"
        done = "failed" if failed else "incomplete" if reason else "completed"
        text: dict[str, Any] = {"format": {"type": "text"}, "verbosity": "medium"}
        asked = msgspec.to_builtins(body.text) if body.text else {}
        reasoning = {"effort": self.effort, "summary": body.reasoning and body.reasoning.summary}
        response = {
            "id": f"resp_{heading.id}",
            "object": "response",
            "created_at": heading.created,
            "status": done,
            "background": False,
            "error": _FAILED if failed else None,
            "incomplete_details": {"reason": reason} if reason else None,
            "input_transformations": _removals(self.removed),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": heading.model,
            "output": [] if failed else self._output(heading, answer),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": reasoning,
            "safety_identifier": body.safety_identifier,
            "service_tier": bill.tier if bill else "default",
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {**text, **{k: v for k, v in asked.items() if v is not None}},
            "tool_choice": body.tool_choice,
            "tools": [msgspec.to_builtins(tool) for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "user": body.user,
        }
        if bill is not None:
            response["usage"] = _usage(bill.usage, bill.long_writes)
        return response

    def _output(self, heading: Heading, answer: Answer) -> list[dict[str, Any]]:
        stem = f"{heading.id}{'t' if answer.reasoning else 'n'}"
        cut = end(answer) in _INCOMPLETE
        status = "incomplete" if cut else "completed"
        found: list[dict[str, Any]] = []
        if answer.reasoning:
            found.append(self._reasoning(f"rs_{stem}", heading, answer))
        if answer.content or (not answer.tool_calls and not cut):
            said = {
                "type": "output_text",
                "text": answer.content,
                "annotations": [],
                "logprobs": [],
            }
            refused = {"type": "refusal", "refusal": answer.content}
            found.append(
                {
                    "id": f"msg_{stem}",
                    "type": "message",
                    "role": "assistant",
                    "status": status,
                    "phase": "commentary" if answer.tool_calls else "final_answer",
                    "content": [refused if end(answer) == "refusal" else said],
                }
            )
        found += (
            {
                "id": f"fc_{stem}.{i}",
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": status,
            }
            for i, call in enumerate(answer.tool_calls)
        )
        return found

    def _reasoning(self, item_id: str, heading: Heading, answer: Answer) -> dict[str, Any]:
        asked = self.body.reasoning and (
            self.body.reasoning.summary or self.body.reasoning.generate_summary
        )
        summary = [answer.reasoning] if asked and not heading.redacted else []
        seal = msgspec.structs.replace(
            self.owner,
            beside=items.beside(item_id, summary),
            tokens=heading.thought_tokens,
        )
        return {
            "id": item_id,
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": text} for text in summary],
            "encrypted_content": opaque.sealed(seal, heading.sealed_size),
        }


_INCOMPLETE: Mapping[AnswerEnd, str] = {
    "length": "max_output_tokens",
    "full": "max_output_tokens",
    "content_filter": "content_filter",
}
_FAILED = {"code": "server_error", "message": "The model failed to generate a response."}


def _removals(removed: Sequence[Removal]) -> list[dict[str, str]] | None:
    found = [
        {"id": r.id, "action": "removed", "reason": r.reason, "type": "reasoning"} for r in removed
    ]
    return found or None


def _usage(usage: Usage, long_writes: int) -> dict[str, Any]:
    written = {
        "ttl_30m_tokens": usage.cache_write_tokens - long_writes,
        "ttl_12h_tokens": long_writes,
    }
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "cache_write_tokens_details": written,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
