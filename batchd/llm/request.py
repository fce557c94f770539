"""The request to a model, in no dialect's own form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchd import decoders
from batchd.records import (
    EFFORTS,
    STANDARD,
    Api,
    AskedEffort,
    Effort,
    Message,
    ModelSetup,
    Replay,
    Tier,
    Tool,
    ToolCall,
)
from batchd.records.unicode import valid_throughout


class ModelTarget(Struct, frozen=True, kw_only=True):
    """The target of a call: what an answer's items go back to."""

    api: Api
    provider: str
    model: str
    #: The server's host and port.
    host: str = ""
    #: The account as the provider names it with its answers; empty: it has not yet, or never does.
    account: str = ""

    @classmethod
    def of(cls, setup: ModelSetup, host: str, account: str) -> ModelTarget:
        """Return who is asked where a model is called like this."""
        return cls(
            api=setup.api, provider=setup.provider, model=setup.model, host=host, account=account
        )

    def takes(self, replay: Replay | None) -> bool:
        """Whether items go back to it: it has made them, as far as is known."""
        return (
            replay is not None
            and (replay.api, replay.provider, replay.model) == (self.api, self.provider, self.model)
            and replay.host == self.host
            and (replay.account == self.account or not (replay.account and self.account))
        )

    def replay(self, items: tuple[msgspec.Raw, ...], thinking_tokens: int) -> Replay:
        """Return the items of an answer of its own."""
        return Replay(
            api=self.api,
            provider=self.provider,
            model=self.model,
            account=self.account,
            host=self.host,
            items=items,
            thinking_tokens=thinking_tokens,
        )


class ModelRequest(Struct, frozen=True, kw_only=True):
    """One call: the whole conversation, and what the answer may be."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    max_output_tokens: int
    #: The answer ends in front of any of these.
    stop: tuple[str, ...] = ()
    #: A JSON Schema for the answer, sent as far as ``ModelSetup.json_mode`` allows.
    schema: Mapping[str, Any] | None = None
    #: What a conversation is cached under that will go on; empty: it ends with this call.
    cache_key: str = ""
    #: As the provider calls it; None: as the account is set up.
    service_tier: str | None = None
    #: What the model is known to refuse, in the words of ``refused_fields``.
    spared: frozenset[str] = frozenset()

    def without_items(self) -> ModelRequest:
        """Return the same request with every message as neutral text and calls."""
        return replace(self, messages=tuple(replace(m, replay=None) for m in self.messages))

    def of_tier(self, tier: Tier) -> ModelRequest:
        """Return the same request as this service tier serves it."""
        asked = None if tier == STANDARD else tier
        return self if asked == self.service_tier else replace(self, service_tier=asked)

    def effort(self, setup: ModelSetup, words: tuple[Effort, ...]) -> AskedEffort:
        """Return how much the model is to think, as one of ``words``; empty: its own default.

        The nearest lower one where it lacks what is asked for, or the lowest that it has.
        """
        if not setup.effort:
            return ""
        asked = EFFORTS.index(setup.effort)
        has = [w for w in EFFORTS if w in words and f"effort:{w}" not in self.spared]
        lower = [w for w in has if EFFORTS.index(w) <= asked]
        return lower[-1] if lower else has[0] if has else ""


def alternating(messages: tuple[Message, ...]) -> Iterator[Message]:
    """Yield ``messages``, those of the user that follow each other as one:
    strict chat templates refuse two running.

    No request ever ends between two of them, so that this changes nothing of what was sent before.
    """
    before: Message | None = None
    for message in messages:
        if before is not None and by_user(before) and by_user(message):
            before = Message("user", f"{before.content}\n\n{message.content}")
            continue
        if before is not None:
            yield before
        before = message
    if before is not None:
        yield before


def by_user(message: Message) -> bool:
    """Whether a message goes out as the user's: what answers a call of the text protocol, too."""
    return message.role == "user" or (message.role == "tool" and message.tool_call_id is None)


_OBJECT: msgspec.json.Decoder[dict[str, msgspec.Raw]] = decoders.decoder(dict[str, msgspec.Raw])


def arguments(call: ToolCall) -> str:
    """Return a call's arguments as a JSON object, whatever they are."""
    try:
        _OBJECT.decode(call.arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        # Some servers answer 400 or 500 to a conversation with broken arguments in it, for ever.
        return msgspec.json.encode({"malformed": valid_throughout(call.arguments)}).decode()
    return call.arguments
