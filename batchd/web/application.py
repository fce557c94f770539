"""The routes: pages, what fills them, and what keeps them up to date."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Sequence
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

from batchd.errors import BatchdError, UnknownNameError, UsageError
from batchd.records import Ref, Status
from batchd.store.reader import Reader
from batchd.store.views import ORDERS
from batchd.web import live, made, money, page, views
from batchd.web.books import Books
from batchd.web.gate import SESSION_S, Gate
from batchd.web.live import Wish
from batchd.web.shield import Shield, cookie_name, refused, session
from batchd.web.streams import Stream, Streams
from batchd.web.watch import Watch

#: Characters of what tasks are searched for.
_LONGEST = 200
#: Older batches that are sent at once.
_MOST = 100
#: A report larger than this is opened from its folder.
_REPORT = 64 << 20
#: A report runs its own scripts, but without an origin: it can ask for nothing, and reads no other page.
_REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What requests are answered from."""

    books: Books
    watch: Watch
    streams: Streams
    gate: Gate


def application(state: Path, gate: Gate, hosts: Sequence[str], streams: Streams) -> Starlette:
    """Return what answers requests about the spool whose state directory this is."""
    desk = Desk(books=Books(state / "batchd.db"), watch=Watch(state), streams=streams, gate=gate)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await desk.watch.close()
        desk.books.close()

    handlers = _Handlers(desk)
    app = Starlette(
        routes=[*handlers.routes()],
        middleware=[Middleware(Shield, gate=gate, names=hosts, login=page.shell(login=True))],
        exception_handlers={BatchdError: _troubled, HTTPException: _nothing},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Handlers:
    def __init__(self, desk: Desk) -> None:
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
                await self._desk.books.ask(_known(names["batch"], names.get("task", "")))
            except UnknownNameError:
                code = 404
            except BatchdError:
                pass  # the page itself says what is the matter
        return HTMLResponse(page.shell(login=False), code)

    async def asset(self, request: Request) -> Response:
        """Return a file that pages are made of; its name changes with it."""
        found = page.assets().get(request.path_params["name"])
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
        response = _json({"admitted": True})
        # Behind a proxy that speaks TLS, never without it.
        secure = request.headers.get("x-forwarded-proto") == "https"
        response.set_cookie(
            cookie_name(request.scope),
            gate.session(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return response

    async def report(self, request: Request) -> Response:
        """Return the report of a batch, as it lies in its folder."""
        row = await self._desk.books.ask(lambda reader: reader.batch(request.path_params["batch"]))
        data = await run_in_threadpool(_file, Path(row.batch.folder, "report.html"))
        if data is None:
            raise HTTPException(404, "there is no report in the folder of this batch")
        return HTMLResponse(data, headers={"Content-Security-Policy": _REPORT_POLICY})

    # What fills them

    async def overview(self, _request: Request) -> Response:
        """Return how things stand."""
        return _json(views.overview(await self._desk.watch.once()))

    async def batches(self, request: Request) -> Response:
        """Return batches, newest first, so many of them."""
        page_no = _number(request, "page")
        limit = (page_no + 1) * _MOST + 1
        rows = await self._desk.books.ask(lambda reader: reader.batches(limit=limit))
        shown = rows[page_no * _MOST : limit - 1]
        return _json({"batches": [*map(views.batch, shown)], "more": len(rows) == limit})

    async def batch(self, request: Request) -> Response:
        """Return a batch, and some of its tasks."""
        view = live.batch(self._desk.books, request.path_params["batch"], _wish(request))
        return _json(await view(await self._desk.watch.once()))

    async def task(self, request: Request) -> Response:
        """Return a task, its conversation apart."""
        sight, ref = await self._desk.watch.once(), _ref(request)
        return _json(await self._desk.books.ask(lambda reader: live.facts(reader, ref, sight)))

    async def conversation(self, request: Request) -> Response:
        """Return the part of a conversation that came before event ``before``."""
        ref, before = _ref(request), _number(request, "before")
        return _json(await self._desk.books.ask(lambda reader: live.earlier(reader, ref, before)))

    async def made(self, request: Request) -> Response:
        """Return what a task has made: its patch, and its files."""
        ref = _ref(request)
        return _json(await self._desk.books.ask(lambda reader: made.listed(reader, ref)))

    async def preview(self, request: Request) -> Response:
        """Return what there is to see of a file that a task has made."""
        ref, path = _ref(request), request.query_params.get("path", "")
        return _json(await self._desk.books.ask(lambda reader: made.preview(reader, ref, path)))

    async def file(self, request: Request) -> Response:
        """Return a file that a task has made, to be saved: a browser is to run none of it."""
        ref, path = _ref(request), request.query_params.get("path", "")
        data = await self._desk.books.ask(lambda reader: made.content(reader, ref, path))
        name = quote(path.rpartition("/")[2], safe="")
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def cost(self, request: Request) -> Response:
        """Return what was spent, split up."""
        by, days = request.query_params.get("by", "day"), _number(request, "days")
        if by not in money.SPLITS:
            raise UsageError(f"by is one of {', '.join(money.SPLITS)}")
        return _json(await self._desk.books.ask(lambda reader: money.spent(reader, by, days)))

    # What keeps them up to date

    async def live_overview(self, _request: Request) -> Stream | Response:
        """Send how things stand, from now on."""
        desk = self._desk
        return desk.streams.answer(live.updates(desk.watch, live.overview))

    async def live_batch(self, request: Request) -> Stream | Response:
        """Send what a batch does, from now on."""
        desk = self._desk
        view = live.batch(desk.books, request.path_params["batch"], _wish(request))
        await desk.books.ask(_known(request.path_params["batch"]))
        return desk.streams.answer(live.updates(desk.watch, view))

    async def live_task(self, request: Request) -> Stream | Response:
        """Send what a task does, from now on; a browser that comes back says what it has."""
        desk, ref = self._desk, _ref(request)
        await desk.books.ask(_known(ref.batch, ref.task))
        known = request.headers.get("last-event-id") or request.query_params.get("from", "")
        start = int(known) if known.isascii() and known.isdigit() and len(known) < 10 else None  # noqa: PLR2004
        return desk.streams.answer(live.task(desk.books, desk.watch, ref, start))


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
        return HTMLResponse(page.shell(login=False), error.status_code)
    body = msgspec.json.encode({"error": error.detail})
    return Response(body, error.status_code, error.headers, "application/json")


def _known(batch: str, task: str = "") -> Callable[[Reader], object]:
    return lambda reader: reader.task(Ref(batch, task)) if task else reader.batch(batch)


def _ref(request: Request) -> Ref:
    return Ref(request.path_params["batch"], request.path_params["task"])


def _number(request: Request, name: str) -> int:
    """Return a count from the query; 0 where there is none."""
    text = request.query_params.get(name, "") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004 (beyond it no page is)
        raise UsageError(f"{name} is a number")
    return int(text)


def _wish(request: Request) -> Wish:
    order = request.query_params.get("sort", "")
    statuses = [s for s in request.query_params.get("status", "").split(",") if s]
    if order.removeprefix("-") not in ORDERS or not {*statuses} <= {*Status}:
        raise UsageError("sort is a column, and status a list of statuses")
    return Wish(
        statuses=tuple(statuses),
        text=request.query_params.get("q", "")[:_LONGEST],
        order=order.removeprefix("-"),
        descending=order.startswith("-"),
        page=_number(request, "page"),
    )


def _file(path: Path) -> bytes | None:
    """Return a regular file's content; None for anything else: agents may have worked near it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:  # noqa: PTH123 (a descriptor)
        found = os.fstat(fd)
        return file.read() if stat.S_ISREG(found.st_mode) and found.st_size <= _REPORT else None
