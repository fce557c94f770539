"""The model's window: how full it is, and what can be left out of it."""

from __future__ import annotations

from batchd import tokens
from batchd.agent import prompts
from batchd.records import Message, ModelSetup
from batchd.taskstate import ELIDED, TaskState

#: Past this share of the window the conversation is shortened (the design's number).
FULL = 0.8
#: The newest messages are what the model works on: they stay whole.
KEEP_LAST = 6
#: The system prompt and the user's own words stay.
KEEP_FIRST = 2
#: What the tool schemas of ``prompts.TOOLS`` take, in tokens; a test holds it to the count.
SCHEMA_TOKENS = 240
#: An output shorter than this is not worth a stub (characters).
_WORTH_ELIDING = 4 * len(ELIDED)


def size(state: TaskState) -> int:
    """Return the tokens of the next request: the provider's count, and ours of what it has not seen."""
    unseen = tokens.count_messages(state.messages[state.seen :])
    return (state.seen_tokens or SCHEMA_TOKENS) + unseen


def full(tokens_used: int, setup: ModelSetup) -> bool:
    """Return whether the conversation must be shortened before the next call."""
    return bool(setup.context_window) and tokens_used > FULL * setup.context_window


def room(input_tokens: int, setup: ModelSetup) -> int:
    """Return how many tokens of output fit into the window behind ``input_tokens``."""
    if not setup.context_window:
        return 1 << 31
    return max(256, setup.context_window - input_tokens)


def elidable(messages: tuple[Message, ...]) -> tuple[int, ...]:
    """Return the positions of old tool outputs that are worth a stub."""
    return tuple(
        i
        for i, message in enumerate(messages[:-KEEP_LAST])
        if message.role == "tool" and len(message.content) > _WORTH_ELIDING
    )


def middle(messages: tuple[Message, ...]) -> tuple[int, int]:
    """Return ``[start, end)``: what a summary may replace without parting a call from its output."""
    start, end = KEEP_FIRST, max(KEEP_FIRST, len(messages) - KEEP_LAST)
    while end > start and messages[end].role == "tool":
        end -= 1
    return start, end


def summary_request(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation that asks the model for a summary of its middle."""
    _, end = middle(messages)
    return (*messages[:end], Message("user", prompts.COMPACTION))
