"""Makes recordings of the tasks of a batch, as a real model has answered them.

PYTHONPATH=tests python -m standin.record SPOOL BATCH batchd/demo/recordings
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.events import CallAnswered, Event, TaskStarted
from batchd.records import Purpose
from batchd.store import lookups
from batchd.store.queries import StoreReader

#: What is written though it be empty, and what counts as empty.
_KEPT = frozenset({"content", "done", "answers", "judge"})
_EMPTY: tuple[object, ...] = ("", 0, (), {}, None, False)


def recording(first_prompt: str, events: list[Event]) -> Recording:
    """Return a task's conversation, from its journal."""
    answered = [e for e in events if isinstance(e, CallAnswered)]
    agent = [e.answer for e in answered if e.purpose is Purpose.AGENT]
    verdicts = []
    for at, event in enumerate(answered):
        if event.purpose is Purpose.JUDGE:
            said = msgspec.json.decode(event.answer.content, type=RecordedVerdict)
            after = sum(e.purpose is Purpose.AGENT for e in answered[:at])
            verdicts.append(replace(said, after=after, usage=event.answer.usage))
    (started, *_) = (e for e in events if isinstance(e, TaskStarted))
    return Recording(
        first_prompt=first_prompt,
        model=started.terms.model.name,
        without_tools=any(e.text_protocol for e in answered),
        answers=tuple(agent),
        judge=tuple(verdicts),
    )


def save(folder: Path, recording: Recording) -> Path:
    """Write a recording, and return its file."""
    digest = hashlib.sha256(recording.first_prompt.encode("utf-8", "replace")).hexdigest()[:8]
    words = re.findall("[a-z0-9]+", recording.first_prompt.lower())
    path = folder / ("-".join([*words[:5], digest]) + ".json")
    body = msgspec.json.encode(_lean(msgspec.to_builtins(recording)))
    path.write_bytes(msgspec.json.format(body, indent=1) + b"\n")
    return path


def _lean(value: object) -> object:
    """Return a record without the fields that are empty, which are defaults."""
    if isinstance(value, dict):
        return {k: _lean(v) for k, v in value.items() if k in _KEPT or v not in _EMPTY}
    return [_lean(v) for v in value] if isinstance(value, tuple | list) else value


def main() -> None:
    """Record a batch."""
    spool, batch, folder = sys.argv[1:]
    with StoreReader(Path(spool) / ".batchd" / "batchd.db") as reader:
        for row in reader.tasks(batch):
            spec = reader.read(lookups.find_task, row.ref)
            print(
                save(
                    Path(folder), recording(spec.first_prompt, reader.read(lookups.events, row.ref))
                )
            )


if __name__ == "__main__":
    main()
