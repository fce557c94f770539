"""Recorded conversations: one JSON file each, what a real model once answered to one task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.errors import NotPossibleError
from batchd.records import Answer, Usage

#: The recordings of the sample tasks in ``task.json``.
SHIPPED = Path(__file__).parent / "recordings"


class RecordingError(NotPossibleError):
    """A recording cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedVerdict:
    """What the judge said."""

    done: bool
    feedback: str = ""
    #: How many answers the agent had given by then.
    after: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One conversation."""

    #: The prompt of its task.
    first_prompt: str
    #: The model that gave the answers.
    model: str
    #: Whether it was offered no tools, so that what it wanted run stands in its text.
    without_tools: bool = False
    answers: tuple[Answer, ...] = ()
    judge: tuple[RecordedVerdict, ...] = ()

    def answer(self, turn: int) -> Answer:
        """Return the answer after ``turn`` others."""
        return self.answers[turn] if turn < len(self.answers) else Answer(content="Done.")

    def verdict(self, after: int) -> RecordedVerdict:
        """Return the verdict after so many answers;
        what comes later than the last is judged like it.
        """
        later = [v for v in self.judge if v.after >= after]
        return later[0] if later else self.judge[-1] if self.judge else RecordedVerdict(done=True)


def load(folder: Path) -> tuple[Recording, ...]:
    """Return the recordings in a folder. Raises ``RecordingError``, which names the file."""
    if not folder.is_dir():
        raise RecordingError(f"{folder}: there is no such folder of recordings")
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(decoders.decode(path.read_bytes(), Recording))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise RecordingError(f"{path}: {exc}") from exc
    return tuple(found)


def mentioned(text: str, prompts: Iterable[str]) -> str | None:
    """Return the longest prompt that a text quotes,
    such as a task's first message or a judge's request; case and white space do not matter.
    """
    flat = normalised(text)
    return max((p for p in prompts if p and normalised(p) in flat), key=len, default=None)


def normalised(text: str) -> str:
    """Return a prompt without what does not matter: case and white space."""
    return " ".join(text.casefold().split())
