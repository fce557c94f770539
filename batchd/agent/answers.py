"""What becomes of an answer before it is kept, and of a request that was refused."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from batchd.llm import ModelRequest
from batchd.masking import Masker
from batchd.records import (
    Answer,
    Failure,
    FailureKind,
    ToolCall,
)


def masked(outcome: Answer | Failure, masker: Masker) -> Answer | Failure:
    """Return what a provider said without the secrets that it may have echoed."""
    if isinstance(outcome, Failure):
        return replace(outcome, message=masker.text(outcome.message))
    items = outcome.replay.items if outcome.replay else ()
    if all(masker.text(text) == text for text in _texts(outcome)) and not any(
        _holds(masker, bytes(raw)) for raw in items
    ):
        return outcome
    return replace(
        outcome,
        content=masker.text(outcome.content),
        reasoning=masker.text(outcome.reasoning),
        model=masker.text(outcome.model),
        refusal=masker.text(outcome.refusal),
        tool_calls=tuple(
            ToolCall(*map(masker.text, (c.id, c.name, c.arguments))) for c in outcome.tool_calls
        ),
        # What is sealed cannot be masked:
        # neither this goes back as it came, nor what comes after it.
        replay=None,
        masked=outcome.replay is not None,
    )


def _texts(answer: Answer) -> Iterator[str]:
    """Yield the texts of an answer."""
    yield from (answer.content, answer.reasoning, answer.model, answer.refusal)
    for call in answer.tool_calls:
        yield from (call.id, call.name, call.arguments)


def _holds(masker: Masker, item: bytes) -> bool:
    """Whether an item holds a secret, as it is written or in the texts that it says."""
    text = item.decode("utf-8", "replace")
    if masker.text(text) != text:
        return True
    try:
        value = msgspec.json.decode(item) if "\\" in text else None
        return bool(masker.value(value) != value)
    except (msgspec.MsgspecError, RecursionError):
        return True  # numbers beyond all bounds, lists within lists: what cannot be looked through is not kept


def repaired(request: ModelRequest, failure: Failure) -> ModelRequest:
    """Return the request as it is sent again: without what was refused of it."""
    if failure.kind is FailureKind.REPLAY:
        return request.without_items()
    if failure.kind is FailureKind.SPARED:
        return replace(request, spared=request.spared | {failure.refuses})
    return request
