"""Counts tokens as a provider with a prompt cache does."""

from __future__ import annotations

import functools

from batchd import tokens
from batchd.demo.chat import Message, Request
from batchd.records import Answer, Usage

#: Prefixes remembered, then the cache is emptied: enough for a day of tests, about 20 MB.
_MAX_PREFIXES = 200_000
#: What every answer has without counting.
FIXED = Usage(calls=1, input_tokens=1000, output_tokens=50)


class Meter:
    """Counts each message once: a request's tokens are those of its longest known prefix and what follows.

    What was counted before is what a provider would read from its cache.
    """

    def __init__(self) -> None:
        #: The chained hash of a prefix of messages, and the tokens of that prefix.
        self._known: dict[int, int] = {}

    def prompt(self, request: Request, *, cache: bool = True) -> tuple[int, int]:
        """Return the input tokens of a request, and how many of them are cached.

        ``cache`` is whether it is in the cache from now on: what is refused does not come there.
        """
        tools = request.tools
        total = _schemas(tools) if tools else 0
        key, cached, hit = hash((request.body.model, tools)), 0, True
        if len(self._known) > _MAX_PREFIXES:
            self._known.clear()
        for raw, message in zip(request.body.messages, request.messages, strict=True):
            key = hash((key, bytes(raw)))
            known = self._known.get(key)
            hit = hit and known is not None
            total = known if known is not None else total + _message(message)
            if cache:
                self._known[key] = total
            if hit:
                cached = total
        return total, cached

    def usage(self, request: Request, answer: Answer) -> Usage:
        """Return the usage of an answer; output that was recorded counts as recorded."""
        total, cached = self.prompt(request)
        thought = answer.usage.reasoning_tokens or _text(answer.reasoning)
        said = answer.usage.output_tokens or _output(answer) + thought
        return Usage(
            calls=1,
            input_tokens=total,
            cached_input_tokens=cached,
            output_tokens=said,
            reasoning_tokens=thought,
        )


def _message(message: Message) -> int:
    calls = message.tool_calls or ()
    return (
        tokens.MESSAGE_TOKENS
        + _text(message.text)
        + _text(message.reasoning_content or "")
        + sum(
            _text(c.function.name) + _text(c.function.arguments) + tokens.TOOL_CALL_TOKENS
            for c in calls
        )
    )


def _output(answer: Answer) -> int:
    calls = (
        _text(c.name) + _text(c.arguments) + tokens.TOOL_CALL_TOKENS for c in answer.tool_calls
    )
    return _text(answer.content) + sum(calls) + 1


@functools.lru_cache(64)
def _schemas(tools: bytes) -> int:
    return tokens.count(tools.decode())


@functools.lru_cache(4096)
def _text(text: str) -> int:
    return tokens.count(text) if text else 0
