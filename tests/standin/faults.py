"""What can go wrong between a client and a provider, each fault under the name that asks for it.

How a model's name asks for them is said in ``scripts``; what a refusal says, in ``refusals.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace


@dataclass(frozen=True, slots=True)
class Fault:
    """What a request is refused for, by its name; each dialect has its own words for it."""

    name: str
    model: str = ""
    #: Of what is too long for a window: the numbers.
    window: int = 8192
    prompt: int = 9001
    output: int = 0


class HttpRefusal(msgspec.Struct, frozen=True):
    """An HTTP error, in the words of the provider that it is known from."""

    status: int
    message: str
    type: str
    code: str | int | None = None
    param: str | None = None
    #: Whether it says how long to wait.
    retry: bool = False


_REFUSALS = msgspec.toml.decode(
    Path(__file__).with_name("refusals.toml").read_bytes(),
    type=dict[str, dict[str, HttpRefusal]],
)
#: The words of chat completions, of Responses and of Messages, by the fault's name.
CHAT: Mapping[str, HttpRefusal] = _REFUSALS["openai"]
RESPONSES = {**CHAT, **_REFUSALS["responses"]}
MESSAGES = {**CHAT, **_REFUSALS["anthropic"]}
#: What a request can be refused for. A tier without room strikes who asks for it; lost seals, who
#: sends opaque items back.
REFUSALS = frozenset(CHAT.keys() - {"error-200", "output-overflow"})
#: Faults of the way: never answers; answers half and then never ends; the connection closed before
#: the answer, or within it; a byte a second; something else than an answer under status 200.
DELIVERIES = frozenset(
    {"hang", "hang-body", "cut", "cut-body", "drip", "html", "broken-json", "no-choices"}
    | {"error-200", "failed"}
)
HTML = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"


def refusal(words: Mapping[str, HttpRefusal], fault: Fault) -> HttpRefusal:
    """Return a fault in a dialect's words, with its numbers where it has some."""
    found = words[fault.name]
    message = found.message.format(
        model=fault.model,
        window=fault.window,
        prompt=fault.prompt,
        output=fault.output,
        sum=fault.prompt + fault.output,
    )
    return replace(found, message=message)
