"""What can go wrong between a client and a provider, each fault under the name that asks for it.

A model name is a list of parts joined by ``+``: ``latency-0.2+500-1+steps-3``. A number behind a fault says
how often it strikes in a conversation, then all is well; ``always``, or no number, is for ever. One fault strikes
at a time, in the order of the name. A conversation is told by its model and first user message.

Settings, whose number means something else: ``latency-S`` (seconds), ``retry-after-S`` (what a 429 or 503 says),
``window-N`` (what of a prompt and the output it asks for is longer, in tokens, overflows the context), ``no-usage``,
``cache-write`` (fresh input is billed as written to the cache), ``reasoning`` (it thinks, and refuses, as DeepSeek
does, tool calls that come back without their thinking).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from batchd.demo import chat


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error, in the words of the provider that it is known from."""

    status: int
    message: str
    type: str
    code: str | int | None = None
    param: str | None = None
    #: Whether it says how long to wait.
    retry: bool = False

    def of(self, model: str) -> Refusal:
        """Return it in the words that it has for a model."""
        return replace(self, message=self.message.replace("{model}", model))

    @property
    def body(self) -> bytes:
        """The error as JSON."""
        return chat.error(self.message, self.type, self.code, self.param)


_INVALID = "invalid_request_error"
RATE_LIMIT = Refusal(
    429,
    "Rate limit reached for this model in organization org-stand-in on requests per min (RPM). "
    "Please try again later.",
    "requests",
    "rate_limit_exceeded",
    retry=True,
)
TOKEN_LIMIT = Refusal(
    429,
    "Rate limit reached for this model in organization org-stand-in on tokens per min (TPM). "
    "Please try again later.",
    "tokens",
    "rate_limit_exceeded",
    retry=True,
)
BAD_KEY = Refusal(
    401,
    "Incorrect API key provided: sk-sta********t-in. You can find your API key in the settings.",
    _INVALID,
    "invalid_api_key",
)
OVERFLOW = Refusal(
    400,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 "
    "tokens. Please reduce the length of the messages.",
    _INVALID,
    "context_length_exceeded",
    "messages",
)
#: DeepSeek's own words.
THOUGHTLESS = Refusal(
    400,
    "The `reasoning_content` in the thinking mode must be passed back to the API.",
    _INVALID,
    _INVALID,
)


def thoughtless(messages: Sequence[chat.Message]) -> bool:
    """Return whether tool calls came back without the thinking behind them."""
    return any(m.tool_calls and m.reasoning_content is None for m in messages)


def too_long(window: int, prompt: int, output: int) -> Refusal:
    """Return OpenAI's refusal of a request that does not fit into the window, with its true numbers."""
    resulted = f"your messages resulted in {prompt} tokens"
    if prompt <= window:
        parts = f"({prompt} in the messages, {output} in the completion)"
        resulted = f"you requested {prompt + output} tokens {parts}"
    message = (
        f"This model's maximum context length is {window} tokens. However, {resulted}. "
        "Please reduce the length of the messages."
    )
    return replace(OVERFLOW, message=message)


NO_MODEL = Refusal(
    404,
    "The model does not exist or you do not have access to it.",
    _INVALID,
    "model_not_found",
    "model",
)

REFUSALS: Mapping[str, Refusal] = {
    "rate-limit": RATE_LIMIT,
    "429": RATE_LIMIT,
    "insufficient-quota": Refusal(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    "400": Refusal(400, "Invalid value for 'temperature'.", _INVALID, None, "temperature"),
    "401": BAD_KEY,
    # LiteLLM's, of a key that is good for other models.
    "no-access": Refusal(
        401,
        "key not allowed to access model. This key can only access models=['others']. "
        "Tried to access {model}",
        "key_model_access_denied",
        "401",
        "model",
    ),
    # OpenAI's, of the requests of a day.
    "day-limit": Refusal(
        429,
        "Rate limit reached for {model} in organization org-stand-in on requests per day (RPD). "
        "Please try again later.",
        "requests",
        "rate_limit_exceeded",
        retry=True,
    ),
    # DeepSeek's own words for an empty account.
    "402": Refusal(402, "Insufficient Balance", "unknown_error", _INVALID),
    "403": Refusal(
        403,
        "Project `proj_stand_in` does not have access to this model.",
        _INVALID,
        "model_not_found",
    ),
    "404": NO_MODEL,
    "500": Refusal(
        500,
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    ),
    "503": Refusal(
        503,
        "The engine is currently overloaded, please try again later.",
        "server_error",
        "overloaded",
    ),
    "context-overflow": OVERFLOW,
    # llama.cpp's way of saying the same: its code is the number of the status.
    "llama-overflow": Refusal(
        400,
        "the request exceeds the available context size, try increasing it",
        "exceed_context_size_error",
        400,
    ),
    "prompt-filter": Refusal(
        400,
        "The response was filtered due to the prompt triggering the content management policy. "
        "Please modify your prompt and retry.",
        _INVALID,
        "content_filter",
        "prompt",
    ),
}

#: Faults of the way: never answers; answers half and then never ends; the connection closed before the answer, or
#: within it; a byte a second; something else than an answer under status 200.
DELIVERIES = frozenset(
    [
        "hang",
        "hang-body",
        "cut",
        "cut-body",
        "drip",
        "html",
        "broken-json",
        "no-choices",
        "error-200",
    ]
)
#: Settings that need a number, and those that take none.
_NUMBERED = frozenset({"latency", "retry-after", "window"})
_PLAIN = frozenset({"no-usage", "cache-write", "reasoning", "demo"})
#: How often a script plays where its name has no number.
SCRIPTS: Mapping[str, float] = {
    "steps": math.inf,
    "notes": math.inf,
    "flood": math.inf,
    "chatter": math.inf,
    "parallel": math.inf,
    "loop": math.inf,
    "length": math.inf,
    "length-empty": math.inf,
    "length-tool": 1,
    "text-tool": 1,
    "text-tools": 1,
    "tool-tags": 1,
    "bash-block": 1,
    "bad-tool-json": 1,
    "unknown-tool": 1,
    "content-filter": math.inf,
    "surrogate": math.inf,
    "surrogate-tool": 1,
    "empty": math.inf,
    "judge-no": math.inf,
    "judge-prose": math.inf,
}

HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
NAMES = tuple(sorted({*REFUSALS, *DELIVERIES, *_NUMBERED, *_PLAIN, *SCRIPTS}))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model name."""

    name: str
    #: How often it strikes, or what its name measures.
    number: float


@functools.lru_cache(4096)
def parse(model: str) -> tuple[Part, ...]:
    """Return the parts of a model name. Raises ``ValueError`` where it is none of ours."""
    return tuple(map(_part, model.split("+")))


def _part(text: str) -> Part:
    if text in _PLAIN:
        return Part(text, math.inf)
    name, number = text, ""
    if name not in NAMES:
        name, _, number = text.rpartition("-")
    if name not in NAMES or name in _PLAIN or (name in _NUMBERED and not number):
        raise ValueError(text)
    if number in {"", "always"}:
        return Part(name, math.inf if number else SCRIPTS.get(name, math.inf))
    value = float(number)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return Part(name, value)


def number(parts: tuple[Part, ...], name: str, default: float) -> float:
    """Return what a setting is set to, or its default."""
    return next((part.number for part in parts if part.name == name), default)
