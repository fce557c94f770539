"""The routes: pages, what fills them, and what keeps them up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from batchd.config import Config
from batchd.errors import (
    BatchdError,
    ForbiddenError,
    NoAnswerError,
    NotPossibleError,
    UnknownNameError,
    UsageError,
)
from batchd.observe.search import Hit, finder, search
from batchd.pricing import Compared, compared
from batchd.store.queries import SPLITS, Split, StoreReader
from batchd.store.rows import BatchRow
from batchd.web import batch_page, made, page_data, page_updates, pages
from batchd.web.gathering import RESULTS
from batchd.web.orders import Ordering
from batchd.web.page_updates import EventStreams, View
from batchd.web.shield import (
    SESSION_S,
    RequestShield,
    TokenCheck,
    as_json,
    cookie_name,
    refused,
    session,
)
from batchd.web.store_queries import StoreQueries, StoreWatch

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

#: Older batches that are sent at once.
_PAGE_OF_BATCHES = 100
#: How long one request searches (seconds), and after how many hits it ends; how many at once.
_SEARCH_S, _HITS, _SEARCHES = 0.3, 50, 2


def application(config: Config, gate: TokenCheck, streams: EventStreams) -> Starlette:
    """Return what answers requests about a spool."""
    state, web = Path(config.paths.state), config.web
    # Where all look without a token, none is known who could give any.
    queries, orders = StoreQueries(state / "batchd.db"), () if gate.open else web.verbs
    handlers = _Handlers(queries, StoreWatch(state), streams, gate, orders, compared(config))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await handlers.watch.close()
        queries.close()

    ordering = Ordering(config, gate, queries).routes() if orders else ()
    hosts = frozenset({"localhost", *(name.lower().rstrip(".") for name in web.hosts)})
    app = Starlette(
        routes=[*ordering, *handlers.routes()],
        middleware=[Middleware(RequestShield, gate, hosts, pages.shell(login=True), orders)],
        exception_handlers={
            BatchdError: _troubled,
            HTTPException: _nothing,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


@dataclass(slots=True, eq=False)
class _Handlers:
    """What answers requests, and from what."""

    queries: StoreQueries
    watch: StoreWatch
    streams: EventStreams
    gate: TokenCheck
    #: The verbs of those that browsers may give.
    orders: tuple[str, ...]
    #: Models that costs are compared with.
    compare: Compared
    #: Others than searches have threads, too.
    _searching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_SEARCHES))

    def routes(self) -> Sequence[Route]:
        batch, task = "/batches/{batch}", "/batches/{batch}/{task}"
        return (
            Route("/assets/{name}", self.asset),
            Route("/session", self.session),
            Route("/", self.shell),
            Route("/cost", self.shell),
            # To be saved: its page shows the same as the report.
            Route(f"{batch}/report.html", self.published("report.html", "text/html")),
            Route(f"{batch}/results.jsonl", self.published(RESULTS, "application/x-ndjson")),
            Route(batch, self.shell),
            Route(task, self.shell),
            Route("/api/overview", self.now(page_updates.overview)),
            Route("/api/batches", self.asked(self.batches)),
            Route("/api/cost", self.asked(self.cost)),
            Route("/api/search", self.search),
            Route(f"/api{batch}", self.now(page_updates.batch)),
            Route("/api/report/{batch}", self.asked(self.whole)),
            Route(f"/api{task}", self.task),
            Route(f"/api{task}/conversation", self.asked(_conversation)),
            Route(f"/api{task}/made", self.asked(_made)),
            Route(f"/api{task}/preview", self.asked(_preview)),
            Route(f"/api{task}/file", self.file),
            Route("/live/overview", self.live(page_updates.overview)),
            Route(f"/live{batch}", self.live(page_updates.batch)),
            Route(f"/live{task}", self.live(page_updates.task)),
        )

    # Pages

    async def shell(self, request: Request) -> Response:
        """Return the page that the script fills; 404 where there is nothing to fill it with."""
        code = 200
        try:
            await self._insist(request)
        except UnknownNameError:
            code = 404
        except BatchdError:
            pass  # the page itself says what is the matter
        return HTMLResponse(pages.shell(login=False, orders=self.orders), code)

    async def _insist(self, request: Request) -> None:
        """Return if there is the batch or the task that a path names. Raises ``StoreError``."""
        if "task" in request.path_params:
            await self.queries.ask(lambda reader: reader.task(page_updates.ref(request)))
        elif "batch" in request.path_params:
            await self._row(request)

    async def asset(self, request: Request) -> Response:
        """Return a file that pages are made of; its name changes with it."""
        name = request.path_params["name"]
        found = next((each for each in pages.assets().values() if each.name == name), None)
        if found is None:
            raise HTTPException(404)
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(found.data, media_type=found.type, headers=kept)

    async def session(self, request: Request) -> Response:
        """Let a browser in that shows the token, once, or say whether it is."""
        gate = self.gate
        if "authorization" not in request.headers:
            admitted = gate.open or gate.admits(session(request.scope))
            return as_json({"admitted": admitted})
        if not gate.open and (refusal := await refused(gate, request.headers)):
            return refusal
        shown = gate.session()
        key = {"key": gate.key(shown)} if self.orders else {}
        response = as_json({"admitted": True, **key})
        # Behind a proxy that speaks TLS, never without it.
        secure = request.headers.get("x-forwarded-proto") == "https"
        response.set_cookie(
            cookie_name(request.scope),
            shown,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return response

    def published(self, name: str, kind: str) -> Endpoint:
        """Return what sends a file of a batch's folder, to be saved."""

        async def answer(request: Request) -> Response:
            row = await self._row(request)
            data = await run_in_threadpool(made.published, Path(row.batch.folder, name))
            if data is None:
                raise HTTPException(404, f"there is no {name} in the folder of this batch")
            headers = _saved(f"{row.batch.name}.{name}")
            return StreamingResponse(data, media_type=kind, headers=headers)

        return answer

    async def _row(self, request: Request) -> BatchRow:
        name = request.path_params["batch"]
        return await self.queries.ask(lambda reader: reader.batch(name))

    # What fills them

    def now(self, view: Callable[[StoreQueries, Request], View]) -> Endpoint:
        """Return what answers with a page as it is now."""

        async def answer(request: Request) -> Response:
            make = view(self.queries, request)
            page, _ = await make(await self.watch.once())
            return as_json(page)

        return answer

    def asked(self, question: Callable[[StoreReader, Request], object]) -> Endpoint:
        """Return what answers a request by what the store says."""

        async def answer(request: Request) -> Response:
            return as_json(await self.queries.ask(lambda reader: question(reader, request)))

        return answer

    def batches(self, reader: StoreReader, request: Request) -> dict[str, Any]:
        """Return batches, newest first, so many of them."""
        page_no = page_updates.number(request, "page")
        limit = (page_no + 1) * _PAGE_OF_BATCHES + 1
        rows, excerpts = reader.batches(limit=limit), self.queries.excerpts
        shown = rows[page_no * _PAGE_OF_BATCHES : limit - 1]
        batches = [page_data.batch(row, excerpts.line(reader, row)) for row in shown]
        return {"batches": batches, "more": len(rows) == limit}

    def whole(self, reader: StoreReader, request: Request) -> dict[str, Any]:
        """Return what a report on a batch holds, but what its tasks said and did in full."""
        row = reader.batch(request.path_params["batch"])
        return batch_page.whole(reader, [row], compare=self.compare)

    async def task(self, request: Request) -> Response:
        """Return a task, its conversation apart."""
        status, ref = await self.watch.once(), page_updates.ref(request)
        found = await self.queries.ask(lambda reader: page_updates.facts(reader, ref, status))
        return as_json(found)

    async def file(self, request: Request) -> Response:
        """Return a file that a task has made, to be saved: a browser is to run none of it."""
        ref, path = page_updates.ref(request), request.query_params.get("path", "")
        data = await self.queries.ask(lambda reader: made.content(reader, ref, path))
        headers = _saved(path.rpartition("/")[2])
        return Response(data, media_type="application/octet-stream", headers=headers)

    def cost(self, reader: StoreReader, request: Request) -> page_data.CostPage:
        """Return what was spent, split up."""
        by = cast("Split", request.query_params.get("by", "day"))
        if by not in SPLITS:
            raise UsageError(f"by is one of {', '.join(SPLITS)}")
        days = page_updates.number(request, "days")
        return page_data.cost(reader, by, days, self.queries.excerpts)

    async def search(self, request: Request) -> Response:
        """Return what a moment of looking finds in a batch, and where the next one begins: who
        types on asks no further.
        """
        given = request.query_params
        find, first = finder(given.get("q", "")), page_updates.number(request, "from")

        def found(reader: StoreReader) -> dict[str, Any]:
            row, hits = reader.batch(given.get("batch", "")), list[Hit]()
            ends = time.monotonic() + _SEARCH_S
            for after, part in search(reader, row, find, first):
                hits += part
                if len(hits) >= _HITS or time.monotonic() > ends:
                    return {"hits": hits, "next": after}
            return {"hits": hits, "next": 0}

        async with self._searching:
            if await request.is_disconnected():  # who types on has asked something else by now
                return Response(status_code=499)
            return as_json(await self.queries.ask(found))

    # What keeps them up to date

    def live(self, view: Callable[[StoreQueries, Request], View]) -> Endpoint:
        """Return what sends a page from now on, each time that it has changed."""

        async def answer(request: Request) -> Response:
            make = view(self.queries, request)
            await self._insist(request)
            return self.streams.answer(request, page_updates.updates(self.watch, make))

        return answer


def _conversation(reader: StoreReader, request: Request) -> dict[str, Any]:
    """Return the part of a conversation that came before event ``before``."""
    before = page_updates.number(request, "before")
    return page_updates.earlier(reader, page_updates.ref(request), before)


def _made(reader: StoreReader, request: Request) -> dict[str, Any]:
    """Return what a task has made: its patch, and its files."""
    return made.listed(reader, page_updates.ref(request))


def _preview(reader: StoreReader, request: Request) -> dict[str, Any]:
    """Return what there is to see of a file that a task has made."""
    path = request.query_params.get("path", "")
    return made.preview(reader, page_updates.ref(request), path)


def _saved(name: str) -> dict[str, str]:
    """Return the headers of what a browser saves under a name, and runs nothing of."""
    return {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }


#: How HTTP says what kind of error it is; of any other, as of a store that cannot be read, 503.
_CODES: Mapping[type[BatchdError], int] = {
    UnknownNameError: 404,
    UsageError: 400,
    ForbiddenError: 403,
    NoAnswerError: 504,
    NotPossibleError: 409,
}


async def _troubled(_request: Request, error: Exception) -> Response:
    """Return the answer where something is asked for that there is not, or that cannot be."""
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), 503)
    return as_json({"error": str(error)}, code)


async def _nothing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(pages.shell(login=False), error.status_code)
    return as_json({"error": error.detail}, error.status_code, error.headers)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    """Return the answer to what no code expects;
    uvicorn then prints the error where the process runs.
    """
    said = "this failed inside batchd: see the output of `batchd web`, and `batchd status`"
    return as_json({"error": said}, 500)
