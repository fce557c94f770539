"""The routes: pages, what fills them, and what keeps them up to date."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from batchd.config.web_page import WebSection
from batchd.errors import BatchdError, UnknownNameError, UsageError
from batchd.store.reader import StoreReader
from batchd.web import asked, assets_served, cost_page, made, page_data, page_updates, report_files
from batchd.web.authentication import SESSION_S, TokenCheck
from batchd.web.event_streams import EventStream, EventStreams
from batchd.web.ordering import Ordering
from batchd.web.shield import RequestShield, cookie_name, refused, session
from batchd.web.store_queries import StoreQueries
from batchd.web.store_watch import StoreWatch

#: Older batches that are sent at once.
_PAGE_OF_BATCHES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSources:
    """What requests are answered from."""

    books: StoreQueries
    watch: StoreWatch
    streams: EventStreams
    gate: TokenCheck
    #: Whether browsers may give any.
    orders: bool


def application(state: Path, gate: TokenCheck, streams: EventStreams, web: WebSection) -> Starlette:
    """Return what answers requests about the spool whose state directory this is."""
    books, orders = StoreQueries(state / "batchd.db"), web.orders and not gate.open
    desk = PageSources(
        books=books, watch=StoreWatch(state), streams=streams, gate=gate, orders=orders
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await desk.watch.close()
        desk.books.close()

    ordering = Ordering(state, books).routes() if orders else ()
    login = assets_served.shell(login=True)
    app = Starlette(
        routes=[*ordering, *_Handlers(desk).routes()],
        middleware=[
            Middleware(RequestShield, gate=gate, names=web.hosts, login=login, orders=orders),
        ],
        exception_handlers={BatchdError: _troubled, HTTPException: _nothing},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Handlers:
    def __init__(self, desk: PageSources) -> None:
        self._desk = desk

    def routes(self) -> Sequence[Route]:
        batch, task = "/batches/{batch}", "/batches/{batch}/{task}"
        return (
            Route("/assets/{name}", self.asset),
            Route("/session", self.session),
            Route("/", self.shell),
            Route("/cost", self.shell),
            Route(f"{batch}/report.html", self.report),
            Route(batch, self.shell),
            Route(task, self.shell),
            Route("/api/overview", self.overview),
            Route("/api/batches", self.batches),
            Route("/api/cost", self.cost),
            Route(f"/api{batch}", self.batch),
            Route(f"/api{task}", self.task),
            Route(f"/api{task}/conversation", self.conversation),
            Route(f"/api{task}/made", self.made),
            Route(f"/api{task}/preview", self.preview),
            Route(f"/api{task}/file", self.file),
            Route("/live/overview", self.live_overview),
            Route(f"/live{batch}", self.live_batch),
            Route(f"/live{task}", self.live_task),
        )

    # Pages

    async def shell(self, request: Request) -> Response:
        """Return the page that the script fills; 404 where there is nothing to fill it with."""
        code = 200
        if names := request.path_params:
            try:
                await self._desk.books.ask(asked.known(names["batch"], names.get("task", "")))
            except UnknownNameError:
                code = 404
            except BatchdError:
                pass  # the page itself says what is the matter
        return HTMLResponse(assets_served.shell(login=False, orders=self._desk.orders), code)

    async def asset(self, request: Request) -> Response:
        """Return a file that pages are made of; its name changes with it."""
        found = assets_served.assets().get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(found.data, media_type=found.type, headers=kept)

    async def session(self, request: Request) -> Response:
        """Let a browser in that shows the token, once, or say whether it is."""
        gate = self._desk.gate
        if "authorization" not in request.headers:
            admitted = gate.open or gate.admits(session(request.scope, request.headers))
            return _json({"admitted": admitted})
        if not gate.open and (refusal := await refused(gate, request.headers)):
            return refusal
        shown = gate.session()
        key = {"key": gate.key(shown)} if self._desk.orders else {}
        response = _json({"admitted": True, **key})
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

    async def report(self, request: Request) -> Response:
        """Return the report of a batch, as it lies in its folder."""
        row = await self._desk.books.ask(lambda reader: reader.batch(request.path_params["batch"]))
        data = await run_in_threadpool(report_files.page, Path(row.batch.folder), row.batch.name)
        if data is None:
            raise HTTPException(404, "there is no report in the folder of this batch")
        return HTMLResponse(data, headers={"Content-Security-Policy": report_files.POLICY})

    # What fills them

    async def overview(self, _request: Request) -> Response:
        """Return how things stand."""
        view = page_updates.overview(self._desk.books)
        return _json(await view(await self._desk.watch.once()))

    async def batches(self, request: Request) -> Response:
        """Return batches, newest first, so many of them."""
        page_no = asked.number(request, "page")
        limit = (page_no + 1) * _PAGE_OF_BATCHES + 1
        books = self._desk.books

        def listed(reader: StoreReader) -> dict[str, Any]:
            rows = reader.batches(limit=limit)
            shown = rows[page_no * _PAGE_OF_BATCHES : limit - 1]
            batches = [page_data.batch(row, books.excerpts.line(reader, row)) for row in shown]
            return {"batches": batches, "more": len(rows) == limit}

        return _json(await books.ask(listed))

    async def batch(self, request: Request) -> Response:
        """Return a batch, and some of its tasks."""
        view = page_updates.batch(
            self._desk.books, request.path_params["batch"], asked.wish(request)
        )
        return _json(await view(await self._desk.watch.once()))

    async def task(self, request: Request) -> Response:
        """Return a task, its conversation apart."""
        sight, ref = await self._desk.watch.once(), asked.ref(request)
        return _json(
            await self._desk.books.ask(lambda reader: page_updates.facts(reader, ref, sight))
        )

    async def conversation(self, request: Request) -> Response:
        """Return the part of a conversation that came before event ``before``."""
        ref, before = asked.ref(request), asked.number(request, "before")
        return _json(
            await self._desk.books.ask(lambda reader: page_updates.earlier(reader, ref, before))
        )

    async def made(self, request: Request) -> Response:
        """Return what a task has made: its patch, and its files."""
        ref = asked.ref(request)
        return _json(await self._desk.books.ask(lambda reader: made.listed(reader, ref)))

    async def preview(self, request: Request) -> Response:
        """Return what there is to see of a file that a task has made."""
        ref, path = asked.ref(request), request.query_params.get("path", "")
        return _json(await self._desk.books.ask(lambda reader: made.preview(reader, ref, path)))

    async def file(self, request: Request) -> Response:
        """Return a file that a task has made, to be saved: a browser is to run none of it."""
        ref, path = asked.ref(request), request.query_params.get("path", "")
        data = await self._desk.books.ask(lambda reader: made.content(reader, ref, path))
        name = quote(path.rpartition("/")[2], safe="")
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def cost(self, request: Request) -> Response:
        """Return what was spent, split up."""
        by, days = request.query_params.get("by", "day"), asked.number(request, "days")
        if by not in cost_page.SPLITS:
            raise UsageError(f"by is one of {', '.join(cost_page.SPLITS)}")
        books = self._desk.books
        return _json(
            await books.ask(lambda reader: cost_page.spent(reader, by, days, books.excerpts))
        )

    # What keeps them up to date

    async def live_overview(self, _request: Request) -> EventStream | Response:
        """Send how things stand, from now on."""
        desk = self._desk
        return desk.streams.answer(
            page_updates.updates(desk.watch, page_updates.overview(desk.books))
        )

    async def live_batch(self, request: Request) -> EventStream | Response:
        """Send what a batch does, from now on."""
        desk = self._desk
        view = page_updates.batch(desk.books, request.path_params["batch"], asked.wish(request))
        await desk.books.ask(asked.known(request.path_params["batch"]))
        return desk.streams.answer(page_updates.updates(desk.watch, view))

    async def live_task(self, request: Request) -> EventStream | Response:
        """Send what a task does, from now on; a browser that comes back says what it has."""
        desk, ref = self._desk, asked.ref(request)
        await desk.books.ask(asked.known(ref.batch, ref.task))
        known = request.headers.get("last-event-id") or request.query_params.get("from", "")
        start = int(known) if known.isascii() and known.isdigit() and len(known) < 10 else None  # noqa: PLR2004
        return desk.streams.answer(page_updates.task(desk.books, desk.watch, ref, start))


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _troubled(_request: Request, error: Exception) -> Response:
    """Return the answer where the store knows no such name (404), or cannot be read (503)."""
    code = (
        404
        if isinstance(error, UnknownNameError)
        else 400
        if isinstance(error, UsageError)
        else 503
    )
    return Response(msgspec.json.encode({"error": str(error)}), code, media_type="application/json")


async def _nothing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(assets_served.shell(login=False), error.status_code)
    body = msgspec.json.encode({"error": error.detail})
    return Response(body, error.status_code, error.headers, "application/json")
