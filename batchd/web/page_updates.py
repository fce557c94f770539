"""What pages are sent, and go on being sent: an overview, a batch, a task."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from batchd.errors import BatchdError, UsageError
from batchd.observe import standstill
from batchd.observe.status import Status, wait_reasons
from batchd.records import Ref, TaskStatus
from batchd.store import lookups
from batchd.store.queries import SORTS, StoreReader
from batchd.store.shown import filled
from batchd.views import Kind, passages
from batchd.web import page_data, pages, store_queries
from batchd.web.gathering import RESULTS
from batchd.web.pages import plain
from batchd.web.shield import as_json
from batchd.web.store_queries import StoreQueries, StoreWatch

#: Who listens at once. A browser that may not is asked to come again.
MAX_LISTENERS = 64
_RETRY_MS = 2000
#: Something is sent that often, so that who is gone is noticed,
#: and no proxy on the way hangs up (seconds).
_HEARTBEAT_S = 15.0
_EVENTS = "text/event-stream"


def _event(name: str, data: object, id_: str = "") -> bytes:
    """Return an event as it is sent; ``id_``: what the browser shows when it comes back."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class EventStreams:
    """All who listen.

    Each gets the next event once it has taken the last one: who is slow misses some.
    """

    def __init__(self) -> None:
        self._open = 0
        self._closing = asyncio.Event()

    def answer(self, request: Request, events: AsyncIterator[bytes]) -> Response:
        """Return the answer to who wants to listen."""
        if request.method == "HEAD":
            return Response(media_type=_EVENTS)
        if self._open >= MAX_LISTENERS:
            why = f"{MAX_LISTENERS} browsers listen already; close some"
            return as_json({"error": why}, 503, {"Retry-After": "10"})
        # For proxies that would collect it.
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(self._sent(events), headers=headers, media_type=_EVENTS)

    def close(self) -> None:
        """Hang up."""
        self._closing.set()

    async def _sent(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield what is sent until one side has enough."""
        self._open += 1
        closing: asyncio.Future[Any] = asyncio.ensure_future(self._closing.wait())
        coming: asyncio.Future[bytes] | None = None
        try:
            yield f"retry: {_RETRY_MS}\n\n".encode()
            while not closing.done():
                coming = coming or asyncio.ensure_future(anext(events))
                either: set[asyncio.Future[Any]] = {coming, closing}
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait(either, timeout=_HEARTBEAT_S, return_when=first)
                if not coming.done():
                    yield b": still here\n\n"
                    continue
                try:
                    event = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield event
        finally:
            self._open -= 1
            closing.cancel()
            if coming is not None:
                coming.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                    await coming


#: Tasks of a batch on one page.
PAGE = 100
#: Events of a task that are sent at once.
_STEPS = 200
#: Characters of one passage.
_MAX_PASSAGE_CHARS = 40_000
#: Characters of what tasks are searched for.
_MAX_SEARCH_CHARS = 200

#: Makes a page's values from what was seen, and what is sent beside them.
View: TypeAlias = Callable[[Status], Awaitable[tuple[page_data.Head, bytes]]]


async def updates(watch: StoreWatch, view: View) -> AsyncIterator[bytes]:
    """Yield what a page shows, each time that it has changed."""
    last = b""
    async with aclosing(watch.sights()) as sights:
        async for status in sights:
            value: page_data.Head
            more = b""
            try:
                value, more = await view(status)
            except BatchdError as error:
                value = page_data.failed(status, error)
            # When it was looked at is not seen.
            shown = msgspec.json.encode(msgspec.structs.replace(value, at=0.0))
            if shown != last:
                last = shown
                yield _event("now", value)
            if more:
                yield more


def overview(queries: StoreQueries, _request: Request) -> View:
    """Return what makes the first page."""

    async def view(status: Status) -> tuple[page_data.Head, bytes]:
        if not status.batches:
            return page_data.overview(status, lambda _batch, _task: ""), b""
        found = await queries.ask(
            lambda reader: page_data.overview(status, partial(queries.excerpts.line, reader))
        )
        return found, b""

    return view


def batch(queries: StoreQueries, request: Request) -> View:
    """Return what makes the page of a batch, with the tasks that are wanted. Raises
    ``UsageError``.
    """
    name, given, page_no = (
        request.path_params["batch"],
        request.query_params,
        number(request, "page"),
    )
    sort, text = given.get("sort", ""), given.get("q", "")[:_MAX_SEARCH_CHARS]
    statuses = [s for s in given.get("status", "").split(",") if s]
    if sort.removeprefix("-") not in SORTS or not {*statuses} <= {*TaskStatus}:
        raise UsageError("sort is a column, and status a list of statuses")

    def page(reader: StoreReader, status: Status) -> page_data.BatchPage:
        row = reader.batch(name)
        count, rows = reader.tasks_where(
            name,
            statuses=statuses,
            text=text,
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            limit=PAGE,
            offset=page_no * PAGE,
        )
        waiting = wait_reasons(reader, rows, status)
        held = standstill.of_batch(reader.parked(), name, rows) if row.finished < row.tasks else ()
        excerpts = (queries.excerpts.line(reader, row, each.ref.task) for each in rows)
        return filled(
            page_data.BatchPage,
            page_data.head(status),
            batch=page_data.batch(row),
            waits=page_data.parked(held),
            matching=count,
            page=page_no,
            report=os.path.lexists(Path(row.batch.folder, "report.html")),
            results=os.path.lexists(Path(row.batch.folder, RESULTS)),
            rows=tuple(
                page_data.task(each, waiting.why(each), status.doing.get(each.ref), excerpt)
                for each, excerpt in zip(rows, excerpts, strict=True)
            ),
        )

    async def view(status: Status) -> tuple[page_data.Head, bytes]:
        return await queries.ask(lambda reader: page(reader, status)), b""

    return view


def task(queries: StoreQueries, request: Request) -> View:
    """Return what makes a task's page: its facts, and its conversation as it grows.

    Each event's id is the number to go on from: a browser that comes back says it. Who does not
    gets the last ones; the first event says where they begin.
    """
    named = ref(request)
    known = request.headers.get("last-event-id") or request.query_params.get("from", "")
    start = int(known) if known.isascii() and known.isdigit() and len(known) < 10 else None

    async def view(status: Status) -> tuple[page_data.Head, bytes]:
        nonlocal start
        value, first, after, grown = await queries.ask(
            lambda reader: _task(reader, named, status, start)
        )
        begins, start = start is None, after
        said = {"first": first, "passages": grown}
        return value, _event("grown", said, str(after)) if grown or begins else b""

    return view


def earlier(reader: StoreReader, ref: Ref, before: int) -> dict[str, Any]:
    """Return the conversation before event ``before``, and where what is sent begins.

    Raises ``StoreError``.
    """
    first = max(0, before - _STEPS)
    return {"first": first, "passages": _passages(reader, ref, first, before)}


def facts(reader: StoreReader, ref: Ref, status: Status) -> page_data.TaskPage:
    """Return what is known of a task, its conversation apart. Raises ``StoreError``."""
    row = reader.task(ref)
    waiting = wait_reasons(reader, [row], status)
    held = () if row.status.final else waiting.parkings(row)
    folder = reader.batch(ref.batch).batch.folder
    prompt = _prompt(reader, ref, folder)
    return filled(
        page_data.TaskPage,
        page_data.head(status),
        batch=ref.batch,
        task=page_data.task(row, waiting.why(row), status.doing.get(ref)),
        prompt=prompt,
        prompt_tree=prompt and pages.tree(prompt),
        pruned=reader.read(lookups.pruned, ref),
        folder=folder,
        kept=os.path.lexists(Path(folder, f"{ref.task}.json")),
        waits=page_data.parked(held),
    )


def _task(
    reader: StoreReader, ref: Ref, status: Status, start: int | None
) -> tuple[page_data.TaskPage, int, int, list[dict[str, Any]]]:
    """Return facts, the number of the first event sent,
    the one after the last, and the passages.
    """
    found = facts(reader, ref, status)
    end = 0 if found.pruned else reader.read(lookups.length, ref)
    first = max(0, end - _STEPS) if start is None or start > end else start
    end = min(end, first + _STEPS)
    return found, first, end, _passages(reader, ref, first, end)


def _passages(reader: StoreReader, ref: Ref, first: int, end: int) -> list[dict[str, Any]]:
    if first >= end:
        return []
    # The prompt stands above the conversation, whether or not it has begun.
    return [
        plain(passage, _MAX_PASSAGE_CHARS)
        for event in reader.read(lookups.events, ref, first, end)
        for passage in passages(event, "")
        if passage.kind is not Kind.PROMPT
    ]


def _prompt(reader: StoreReader, ref: Ref, folder: str) -> str | None:
    """Return the user's request; None once it was pruned,
    and is not in the batch's folder either.
    """
    prompt = store_queries.prompt(reader, ref, folder)
    if not prompt:
        return None
    more = len(prompt) - _MAX_PASSAGE_CHARS
    return prompt if more <= 0 else f"{prompt[:_MAX_PASSAGE_CHARS]}\n… {more:,} characters more"


def ref(request: Request) -> Ref:
    """Return the task that a path names."""
    return Ref(request.path_params["batch"], request.path_params["task"])


def number(request: Request, name: str) -> int:
    """Return a count from the query; 0 where there is none. Raises ``UsageError``."""
    text = request.query_params.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # beyond it no page is
        raise UsageError(f"{name} is a number")
    return int(text)
