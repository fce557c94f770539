"""Recorded conversations: one JSON file each, written by ``record``, replayed by ``server``."""

from __future__ import annotations

import hashlib
import os
import re
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

    #: Its first user message.
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

    @property
    def filename(self) -> str:
        """The name of its file."""
        digest = hashlib.sha256(self.first_prompt.encode("utf-8", "replace")).hexdigest()[:8]
        words = re.findall("[a-z0-9]+", self.first_prompt.lower())
        return "-".join([*words[:5], digest]) + ".json"


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


def save(folder: Path, recording: Recording) -> Path:
    """Write a recording, whole or not at all, and return its file."""
    path = folder / recording.filename
    temporary = path.with_suffix(".tmp")
    body = msgspec.json.format(msgspec.json.encode(_lean(msgspec.to_builtins(recording))), indent=1)
    temporary.write_bytes(body + b"\n")
    os.replace(temporary, path)  # Path.replace is the same; this says that it is atomic
    return path


#: What is written though it be empty, and what counts as empty.
_KEPT = frozenset({"content", "done", "answers", "judge"})
_EMPTY: tuple[object, ...] = ("", 0, (), {}, None)


def _lean(value: object) -> object:
    """Return a record as JSON values for people:
    without the fields that are empty, which are defaults.
    """
    if isinstance(value, dict):
        return {k: _lean(v) for k, v in value.items() if k in _KEPT or v not in _EMPTY}
    return [_lean(v) for v in value] if isinstance(value, tuple) else value


def normalised(text: str) -> str:
    """Return a prompt without what does not matter: case and white space."""
    return " ".join(text.casefold().split())


def find(prompt: str, recordings: Iterable[Recording]) -> Recording | None:
    """Return the recording of a first user message: the exact one, else one that reads the same."""
    wanted, similar = normalised(prompt), None
    for recording in recordings:
        if recording.first_prompt == prompt:
            return recording
        if similar is None and normalised(recording.first_prompt) == wanted:
            similar = recording
    return similar


def mentioned(text: str, prompts: Iterable[str]) -> str | None:
    """Return the longest prompt that a text, such as a judge's request, quotes."""
    found = max((p for p in prompts if p and p in text), key=len, default=None)
    if found is None:
        flat = normalised(text)
        found = max((p for p in prompts if p and normalised(p) in flat), key=len, default=None)
    return found
