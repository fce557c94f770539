"""The shortened conversation that a compaction makes."""

from __future__ import annotations

from msgspec.structs import replace

from batchd.events import Compacted
from batchd.records import Message, Role

#: What stands in the conversation for a tool output that was elided.
ELIDED = "[output removed to save space; run the command again if you need it]"
#: How a summary begins.
NOTES = "Summary of the work so far:\n"
#: What stands behind it, in the user's place.
GO_ON = "Go on from there."


def shortened(messages: tuple[Message, ...], event: Compacted) -> tuple[Message, ...]:
    """Return the conversation after a compaction."""
    elided, kept = set(event.elided), dict(event.clipped)
    if event.plain:
        # What is sealed holds for what stood before it alone.
        messages = without_items(messages)
    messages = tuple(
        replace(m, content=ELIDED)
        if i in elided
        else replace(m, content=clipped(m.content, kept[i]))
        if i in kept
        else m
        for i, m in enumerate(messages)
    )
    if event.summary is None:
        return messages
    role: Role = "assistant" if event.own else "user"
    # Where a provider wants the thinking back, it may want it with every message of the model.
    thinks = event.own and any(m.reasoning is not None for m in messages)
    said = Message(role, f"{NOTES}{event.summary}", reasoning="" if thinks else None)
    notes: tuple[Message, ...] = (said,)
    if event.own:
        notes += (Message("user", GO_ON),)
    return (*messages[: event.start], *notes, *messages[event.end :])


def without_items(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation of texts and calls alone."""
    return tuple(replace(m, replay=None) if m.replay else m for m in messages)


def clipped(text: str, keep: int) -> str:
    """Return ``text`` with its middle cut out,
    so that ``keep`` characters and a note of the cut are left.
    """
    head = keep // 2
    tail = keep - head
    cut = len(text) - keep
    if cut <= 0:
        return text
    note = f"\n[... {cut:,} characters cut out here, which do not fit into your window ...]\n"
    return f"{text[:head]}{note}{text[len(text) - tail :]}"
