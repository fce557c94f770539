"""What pages are sent, and go on being sent: an overview, a batch, a task."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from batchd.errors import BatchdError, StoreError
from batchd.observe import markdown, parking
from batchd.observe.conversation import plain
from batchd.observe.snapshot import Agent
from batchd.observe.waiting import Waiting
from batchd.records import Ref
from batchd.store.reader import Reader
from batchd.store.rows import TaskRow
from batchd.views import Kind, passages
from batchd.web import excerpts, views
from batchd.web.books import Books
from batchd.web.excerpts import Excerpts
from batchd.web.streams import Event
from batchd.web.watch import Sight, Watch

#: Tasks of a batch on one page.
PAGE = 100
#: Events of a task that are sent at once.
_STEPS = 200
#: Characters of one passage.
_LONGEST = 40_000

#: Makes a page's values from what was seen.
View: TypeAlias = Callable[[Sight], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which tasks of a batch are wanted."""

    statuses: tuple[str, ...] = ()
    text: str = ""
    order: str = ""
    descending: bool = False
    #: From 0.
    page: int = 0


async def updates(watch: Watch, view: View) -> AsyncIterator[Event]:
    """Yield what a page shows, each time that it has changed."""
    last = b""
    async with aclosing(watch.sights()) as sights:
        async for sight in sights:
            value = await _settled(view, sight)
            shown = _shown(value)
            if shown != last:
                last = shown
                yield Event(name="now", data=msgspec.json.encode(value))


def overview(books: Books) -> View:
    """Return what makes the first page."""

    async def view(sight: Sight) -> dict[str, Any]:
        if sight.snapshot is None or not sight.snapshot.batches:
            return views.overview(sight, lambda _batch, _task: "")
        return await books.ask(
            lambda reader: views.overview(sight, partial(books.excerpts.line, reader))
        )

    return view


def batch(books: Books, name: str, wish: Wish) -> View:
    """Return what makes the page of a batch."""

    async def view(sight: Sight) -> dict[str, Any]:
        found = await books.ask(lambda reader: _batch(books.excerpts, reader, name, wish, sight))
        return {**views.head(sight), **found}

    return view


async def task(books: Books, watch: Watch, ref: Ref, start: int | None) -> AsyncIterator[Event]:
    """Yield a task's facts whenever they change, and its conversation as it grows, from event ``start`` on.

    None: the last ones; the first event says where they begin. Each event's id is the number to go on from.
    """
    last = b""
    async with aclosing(watch.sights()) as sights:
        async for sight in sights:
            after: int | None
            try:
                facts, first, after, grown = await books.ask(
                    lambda reader, sight=sight, start=start: _task(reader, ref, sight, start)  # type: ignore[misc]
                )
            except StoreError as error:
                facts, first, after, grown = {"error": str(error)}, 0, start, []
            value = {**views.head(sight), **facts}
            shown = _shown(value)
            if shown != last:
                last = shown
                yield Event(name="now", data=msgspec.json.encode(value))
            if grown or (start is None and after is not None):
                parts = msgspec.json.encode({"first": first, "passages": grown})
                yield Event(name="grown", data=parts, id=str(after))
            start = after


def earlier(reader: Reader, ref: Ref, before: int) -> dict[str, Any]:
    """Return the conversation before event ``before``, and where what is sent begins. Raises ``StoreError``."""
    first = max(0, before - _STEPS)
    return {"first": first, "passages": _passages(reader, ref, first, before)}


def facts(reader: Reader, ref: Ref, sight: Sight) -> dict[str, Any]:
    """Return what is known of a task, its conversation apart. Raises ``StoreError``."""
    row = reader.task(ref)
    doing = views.agents(sight)
    waiting = _waiting(reader, ref.batch, [row], sight)
    held = () if row.status.final else waiting.parkings(row)
    folder = reader.batch(ref.batch).batch.folder
    prompt = _prompt(reader, ref, folder)
    return {
        "batch": ref.batch,
        "task": _line(row, waiting, doing),
        "prompt": prompt,
        "prompt_tree": _tree(prompt),
        "pruned": reader.pruned(ref),
        "folder": folder,
        "kept": os.path.lexists(Path(folder, f"{ref.task}.json")),
        "waits": views.parked(held),
    }


def _shown(value: Mapping[str, Any]) -> bytes:
    """Return what of a page's values is seen: when they were taken is not."""
    return msgspec.json.encode({name: each for name, each in value.items() if name != "at"})


async def _settled(view: View, sight: Sight) -> Mapping[str, Any]:
    try:
        return await view(sight)
    except BatchdError as error:
        return {**views.head(sight), "error": str(error)}


def _batch(lines: Excerpts, reader: Reader, name: str, wish: Wish, sight: Sight) -> dict[str, Any]:
    row = reader.batch(name)
    count, rows = reader.tasks_where(
        name,
        statuses=wish.statuses,
        text=wish.text,
        order=wish.order,
        descending=wish.descending,
        limit=PAGE,
        offset=wish.page * PAGE,
    )
    waiting = _waiting(reader, name, rows, sight)
    doing = views.agents(sight)
    held = parking.of_batch(reader.parked(), name, rows) if row.finished < row.tasks else ()
    return {
        "batch": views.batch(row),
        "waits": views.parked(held),
        "matching": count,
        "page": wish.page,
        "report": os.path.lexists(Path(row.batch.folder, "report.html")),
        "rows": [
            _line(each, waiting, doing, lines.line(reader, row, each.ref.task)) for each in rows
        ],
    }


def _line(
    row: TaskRow, waiting: Waiting, doing: Mapping[Ref, Agent], prompt: str = ""
) -> dict[str, Any]:
    return views.task(row, waiting.why(row), doing.get(row.ref), prompt)


def _waiting(reader: Reader, batch: str, rows: list[TaskRow], sight: Sight) -> Waiting:
    """Return what says why tasks wait."""
    after = {name for row in rows if not row.status.final for name in row.after}
    left = reader.left(batch, after) if after else set()
    queued = any(not row.attempts and not row.status.final for row in rows)
    runs = sight.snapshot is not None and (
        sight.snapshot.daemon is not None or sight.snapshot.silent
    )
    begun = reader.begun() if queued else ()
    batches = {batch: reader.open_before(batch)} if queued else {}
    return Waiting(reader.parked(), begun, left, earlier=batches, daemon=runs)


def _task(
    reader: Reader, ref: Ref, sight: Sight, start: int | None
) -> tuple[dict[str, Any], int, int, list[dict[str, Any]]]:
    """Return facts, the number of the first event sent, the one after the last, and the passages."""
    found = facts(reader, ref, sight)
    end = 0 if found["pruned"] else reader.length(ref)
    first = max(0, end - _STEPS) if start is None or start > end else start
    end = min(end, first + _STEPS)
    return found, first, end, _passages(reader, ref, first, end)


def _passages(reader: Reader, ref: Ref, first: int, end: int) -> list[dict[str, Any]]:
    if first >= end:
        return []
    # The prompt stands above the conversation, whether or not it has begun.
    return [
        plain(passage, _LONGEST)
        for event in reader.events(ref, first, end)
        for passage in passages(event, "")
        if passage.kind is not Kind.PROMPT
    ]


@lru_cache(64)
def _tree(prompt: str | None) -> Any:
    """Return a prompt as Markdown: pages that are open ask for it again and again."""
    return prompt and markdown.tree(prompt)


def _prompt(reader: Reader, ref: Ref, folder: str) -> str | None:
    """Return the user's request; None once it was pruned, and is not in the batch's folder either."""
    prompt = excerpts.prompt(reader, ref, folder)
    if not prompt:
        return None
    more = len(prompt) - _LONGEST
    return prompt if more <= 0 else f"{prompt[:_LONGEST]}\n… {more:,} characters more"
