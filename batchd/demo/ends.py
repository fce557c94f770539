"""How the stand-in's answers end: as any answer does, and as single dialects have a word for."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

from msgspec.structs import replace

from batchd.records import Answer, FinishReason

#: Beside the ends that batchd distinguishes: a model that declines, a window that is full, a turn that goes on, a call that fails
#: with status 200.
AnswerEnd: TypeAlias = Literal[FinishReason, "refusal", "full", "pause", "failed"]


def ended(content: str, end: AnswerEnd) -> Answer:
    """Return an answer that ends so; only a dialect of the stand-in's, which asks ``end``, can write it."""
    return replace(Answer(content=content), finish_reason=cast("FinishReason", end))


def end(answer: Answer) -> AnswerEnd:
    """Return how one of the stand-in's answers ends."""
    return answer.finish_reason
