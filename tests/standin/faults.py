"""What can go wrong between a client and a provider, each fault under the name that asks for it.

A model name is a list of parts joined by ``+``: ``latency-0.2+500-1+steps-3``. A number behind a
fault says how often it strikes in a conversation, then all is well; ``always``, or no number, is
for ever. One fault strikes at a time, in the order of the name.
A conversation is known by its model and first user message.

Settings, whose number means something else: ``latency-S`` (seconds), ``retry-after-S`` (what a 429
or 503 says), ``window-N`` (what of a prompt and the output it asks for is longer, in tokens,
overflows the context), ``no-usage``, ``cache-write`` (fresh input is billed as written to the
cache), ``reasoning`` (it thinks, and refuses, as DeepSeek does, tool calls that come back without
their thinking), ``thinks-N`` (in so many tokens), ``opaque-N`` (what is sealed of it has about so
many bytes), ``redacted`` (nothing of it is shown), ``tier-falls`` (what is asked for a tier is
served by the standard one), ``after-N`` (no fault strikes before so many answers). The name of a
real model is a part, too: it has that one's rules and prices, see ``families``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from standin import families


@dataclass(frozen=True, slots=True)
class Fault:
    """What a request is refused for, by its name; each dialect has its own words for it."""

    name: str
    model: str = ""
    #: Of what is too long for a window: the numbers.
    window: int = 0
    prompt: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class HttpRefusal:
    """An HTTP error, in the words of the provider that it is known from."""

    status: int
    message: str
    type: str
    code: str | int | None = None
    param: str | None = None
    #: Whether it says how long to wait.
    retry: bool = False
    #: Whether it is written as OpenAI writes errors, by a server that imitates another.
    foreign: bool = False


#: What a request can be refused for.
REFUSALS = frozenset(
    [
        *("rate-limit", "429", "token-limit", "day-limit", "slow-down"),
        # Quota and money, by the request, the organisation, the project, the account.
        *("insufficient-quota", "402", "credit", "spend-limit", "project-limit", "usage-limit"),
        *(
            "400",
            "401",
            "no-access",
            "403",
            "on-hold",
            "404",
            "409",
            "413",
            "500",
            "503",
            "504",
            "529",
        ),
        *("context-overflow", "llama-overflow", "prompt-filter"),
        # A tier without room strikes who asks for it; lost seals, who sends opaque items back.
        *("flex-full", "seals-lost"),
        "thoughtless",
    ]
)

#: Faults of the way: never answers; answers half and then never ends; the connection closed before
#: the answer, or within it; a byte a second; something else than an answer under status 200.
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
        "failed",
    ]
)
#: Settings that need a number, and those that take none.
_NUMBERED = frozenset({"latency", "retry-after", "window", "opaque", "thinks", "after"})
_PLAIN = frozenset(
    {*families.FAMILIES, "no-usage", "cache-write", "reasoning", "redacted", "tier-falls", "demo"}
)
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
    "refusal": math.inf,
    "full": math.inf,
    "pause": 1,
    "surrogate": math.inf,
    "surrogate-tool": 1,
    "empty": math.inf,
    "judge-no": math.inf,
    "judge-prose": math.inf,
}

HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
NAMES = tuple(sorted({*REFUSALS, *DELIVERIES, *_NUMBERED, *_PLAIN, *SCRIPTS}))


@dataclass(frozen=True, slots=True)
class NamePart:
    """One part of a model name."""

    name: str
    #: How often it strikes, or what its name measures.
    number: float


@functools.lru_cache(4096)
def parse(model: str) -> tuple[NamePart, ...]:
    """Return the parts of a model name. Raises ``ValueError`` where it is none of ours."""
    return tuple(map(_part, model.split("+")))


def _part(text: str) -> NamePart:
    if text in _PLAIN:
        return NamePart(text, math.inf)
    name, number = text, ""
    if name not in NAMES:
        name, _, number = text.rpartition("-")
    if name not in NAMES or name in _PLAIN or (name in _NUMBERED and not number):
        raise ValueError(text)
    if number in {"", "always"}:
        return NamePart(name, math.inf if number else SCRIPTS.get(name, math.inf))
    value = float(number)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return NamePart(name, value)


def number(parts: tuple[NamePart, ...], name: str, default: float) -> float:
    """Return what a setting is set to, or its default."""
    return next((part.number for part in parts if part.name == name), default)
