"""The model's window: how full it is, and what still fits in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from batchd import tokens
from batchd.agent import prompts
from batchd.records import ModelSetup, Purpose
from batchd.taskstate import TaskState, clipped

#: Past this share of the window the conversation is shortened (the design's number).
COMPACTION_SHARE = 0.8
#: This share of it is left free: counts made before a call are estimates.
ESTIMATE_MARGIN = 0.05
#: A call with room for less output than this brings nothing.
MIN_OUTPUT = 256
#: What the judge is shown at most where its model's window is unknown.
_JUDGED = 100_000
#: No text is clipped to fewer tokens than this: the note of the cut alone takes some twenty.
MIN_CLIPPED = 80
#: Characters that are counted in no time: some milliseconds, where they are not words at all.
_MAX_CHARS_COUNTED_INLINE = 20_000
#: A tool's output is kept at least to so many bytes.
_MIN_OUTPUT_BYTES = 1024


@cache
def _schemas(*, stays: bool) -> int:
    return tokens.count_tools(prompts.tools(stays=stays))


def overhead(state: TaskState) -> int:
    """Return the tokens of an agent's request beside its messages:
    the tools' schemas, where it has any.
    """
    return 0 if state.setup(Purpose.AGENT).tools == "text" else _schemas(stays=state.stays)


def size(state: TaskState) -> int:
    """Return the tokens of the next request:
    the provider's count, and ours of what it has not seen.
    """
    if state.seen_tokens:
        unseen = tokens.count_messages(state.messages[state.seen :])
        # Whatever it says of them, what goes back to it unread goes over the line with each call.
        opaque = sum(map(tokens.count_items, state.messages[: state.seen]))
        return max(state.seen_tokens, opaque) + round(state.scale * unseen)
    counted = overhead(state) + tokens.count_messages(state.messages)
    return round(state.scale * counted)


def full(window: int) -> float:
    """Return the tokens past which a conversation is shortened:
    a share of the window, or what is worth a call.
    """
    return min(COMPACTION_SHARE * window, longest(window))


def longest(window: int) -> float:
    """Return the longest input that is worth a call."""
    return window * (1 - ESTIMATE_MARGIN) - MIN_OUTPUT


def laborious(state: TaskState) -> bool:
    """Return whether to count the next request, or to plan how to shorten it,
    takes too long for a loop that others wait for.
    """
    unseen = state.messages[state.seen :] if state.seen_tokens else state.messages
    length = sum(message.length for message in unseen)
    if length > _MAX_CHARS_COUNTED_INLINE or state.summary is not None:
        return True
    # Near its end the whole conversation is counted.
    window = state.setup(Purpose.AGENT).context_window
    return bool(window) and state.seen_tokens + state.scale * length > full(window)


def room(input_tokens: int, setup: ModelSetup) -> int:
    """Return how many tokens of output fit into the window behind ``input_tokens``."""
    window = setup.context_window
    if not window:
        return 1 << 31
    return max(MIN_OUTPUT, int(window * (1 - ESTIMATE_MARGIN)) - input_tokens)


def output_bytes(setup: ModelSetup) -> int | None:
    """Return to how many bytes a tool's output is cut so that several fit into a small window."""
    # A byte a token of the window: a quarter to a half of it, as texts go.
    window = setup.context_window
    return max(_MIN_OUTPUT_BYTES, window) if window else None


def judged(setup: ModelSetup) -> int:
    """Return the tokens of evidence that may be put before the judge."""
    window = setup.context_window
    if not window:
        return _JUDGED
    answer = min(1024, window // 4)
    return (
        int(window * (1 - ESTIMATE_MARGIN))
        - answer
        - tokens.count_messages(prompts.judge(*("" for _ in prompts.EVIDENCE)))
    )


def level(costs: Sequence[float], budget: float) -> float:
    """Return the height to which ``costs`` must be cut for their sum
    to be ``budget``: small ones stay whole.
    """
    left = budget
    for i, cost in enumerate(sorted(costs)):
        share = left / (len(costs) - i)
        if cost > share:
            return share
        left -= cost
    return max(costs, default=0.0)


def fitted(texts: Sequence[str], budget: int) -> list[str]:
    """Return ``texts`` with the longest cut in their middles so that all take ``budget`` tokens."""
    costs = [tokens.count(text) for text in texts]
    if sum(costs) <= budget:
        return list(texts)
    height = level(costs, budget)
    return [clip(text, cost, height) for text, cost in zip(texts, costs, strict=True)]


def clip(text: str, cost: int, height: float) -> str:
    """Return a text of ``cost`` tokens cut in its middle
    to at most ``height``, or to the note of the cut.
    """
    return text if cost <= height else clipped(text, kept(text, cost, height))


def kept(text: str, cost: int, height: float) -> int:
    """Return how many characters of a text of ``cost`` tokens are to be kept
    so that they take at most ``height``.
    """
    keep = int(len(text) * max(0.0, height - MIN_CLIPPED / 4) / cost * 0.95)
    # Both ends of it may take more tokens a character than the middle.
    while keep and (takes := tokens.count(clipped(text, keep))) > height:
        keep = int(keep * min(0.9, height / takes))
    return keep
