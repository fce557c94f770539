"""The search for a text in what tasks were asked, said, ran and printed: a task at a time, so that
who looks can stop, and memory does not grow with the store.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from batchd.errors import UsageError
from batchd.records import Purpose, Ref
from batchd.spool import outbox
from batchd.store import lookups, queries
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow
from batchd.views import Kind, Passage, passages

#: Finds a text in another one.
Finder: TypeAlias = Callable[[str], re.Match[str] | None]
Where: TypeAlias = Literal["prompt", "thinking", "answer", "command", "output", "verdict", "error"]
#: Where the texts of passages stand; those of other kinds are batchd's own.
_WHERE: dict[Kind, Where] = {
    Kind.THINKING: "thinking",
    Kind.ANSWER: "answer",
    Kind.TOOL: "output",
    Kind.VERDICT: "verdict",
    Kind.FAILURE: "error",
}
#: Tasks and events that are read at once.
_TASKS, _EVENTS = 16, 64
#: After so many hits the rest of a task is left out: one task may hold a text ten thousand times.
_MOST_IN_TASK = 100
#: Characters that an excerpt has before what was found, and behind it.
_BEFORE, _AFTER = 40, 120
_SPACE = re.compile(r"\s+")
#: Characters of what is searched for.
_MAX_TEXT = 200


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """The first place in one text of a task that holds what is searched for."""

    batch: str
    task: str
    #: How many answers the model had given by then; None: of a pruned task that is not known.
    turn: int | None
    where: Where
    #: An excerpt on one line.
    before: str
    hit: str
    after: str


def finder(text: str, *, case: bool = False) -> Finder:
    """Return what finds a text: as it is written, where it has a capital, or ``case`` says so; else
    in capitals too. Raises ``UsageError``.
    """
    if not text.strip() or len(text) > _MAX_TEXT:
        raise UsageError(f"a search takes a text of 1 to {_MAX_TEXT} characters")
    if case or text != text.lower():
        return re.compile(re.escape(text)).search
    either = re.compile(re.escape(text), re.IGNORECASE).search
    # Most texts do not hold it, and this sees that ten times as fast.
    return lambda given: either(given) if text in given.lower() else None


def search(
    reader: StoreReader, batch: BatchRow, find: Finder, first: int = 0, task: str = ""
) -> Iterator[tuple[int, list[Hit]]]:
    """Yield what is found in each task of a batch, or in one, with the number of the next task;
    ``first``: that to begin with. Of pruned tasks it looks at what their folder still has.

    Raises ``StoreError``.
    """
    name, folder = batch.batch.name, Path(batch.batch.folder)

    def hits(ref: Ref, turn: int | None, texts: Iterable[tuple[Where, str]]) -> Iterator[Hit]:
        for where, text in texts:
            if found := find(text):
                yield _hit(ref, turn, where, found)

    while tasks := reader.read(queries.prompts_from, name, first, _TASKS, task):
        for number, each, prompt in tasks:
            first, ref, turn = number + 1, Ref(name, each), 0
            if prompt is None:
                yield first, [*hits(ref, None, _kept(folder, each))]
                continue
            found, seen = [*hits(ref, 0, [("prompt", prompt)])], 0
            while len(found) < _MOST_IN_TASK and (
                events := reader.read(lookups.events, ref, seen, seen + _EVENTS)
            ):
                seen += len(events)
                for event in events:
                    said = [*passages(event, "")]
                    answers = (each.title for each in said if each.kind is Kind.ANSWER)
                    turn += Purpose.AGENT in answers
                    found += hits(ref, turn, _texts(said))
            yield first, found


def _kept(folder: Path, task: str) -> Iterator[tuple[Where, str]]:
    """Yield the texts of a pruned task that its result still has."""
    with contextlib.suppress(OSError, ValueError):
        result = outbox.result(folder, task) or {}
        yield "prompt", str(result.get("first_prompt") or "")
        yield "answer", str(result.get("answer") or "")


def _texts(said: Iterable[Passage]) -> Iterator[tuple[Where, str]]:
    """Yield the texts of passages, and where each stands."""
    for passage in said:
        if passage.kind is Kind.TOOL:
            yield "command", f"{passage.title}\n{passage.given}"
        if where := _WHERE.get(passage.kind):
            yield where, passage.text


def _hit(ref: Ref, turn: int | None, where: Where, found: re.Match[str]) -> Hit:
    """Return a hit with its excerpt, which is one line."""
    start, end = found.span()
    before = _SPACE.sub(" ", found.string[max(0, start - _BEFORE) : start]).lstrip()
    after = _SPACE.sub(" ", found.string[end : end + _AFTER]).rstrip()
    return Hit(
        batch=ref.batch,
        task=ref.task,
        turn=turn,
        where=where,
        before=f"…{before}" if start > _BEFORE else before,
        hit=_SPACE.sub(" ", found[0]),
        after=f"{after}…" if end + _AFTER < len(found.string) else after,
    )
