"""Orders over HTTP, where ``[web] orders`` allows them:
a page asks, the user says yes, the daemon decides.

The daemon's own checks are the authority on who may do what: this process asks it as any command of
its user does. The shield has let the request pass: a session with its key, from this very page.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from batchd import control, decoders
from batchd.control import Retried
from batchd.errors import (
    BatchdError,
    ForbiddenError,
    NoAnswerError,
    NoDaemonError,
    UnknownNameError,
    UsageError,
)
from batchd.web.drafts import Drafts
from batchd.web.orders import WantedOrder, WebOrder, ordered
from batchd.web.shield import ASKED, CONFIRMED, session
from batchd.web.store_queries import StoreQueries

T = TypeVar("T")
#: What the daemon gets for an order: ten thousand tasks take their time (seconds).
_PATIENCE_S = 600.0
#: Orders that are carried out at once.
_MAX_ORDERS = 8
#: Bytes of a request, and how long it may take to come (seconds).
_MAX_REQUEST_BYTES = 4096
_SLOWEST_S = 10.0
#: Characters of what a proxy says of whom it asks for.
_FORWARDED = 60


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The yes to a question."""

    ticket: str


class Ordering:
    """Takes orders from browsers to the daemon."""

    def __init__(self, state: Path, queries: StoreQueries) -> None:
        self._state = state
        self._queries = queries
        self._drafts = Drafts()
        self._under_way = 0

    def routes(self) -> Sequence[Route]:
        """Return where orders are asked for, and confirmed."""
        return (
            Route(ASKED, self.asked, methods=["POST"]),
            Route(CONFIRMED, self.confirmed, methods=["POST"]),
        )

    async def asked(self, request: Request) -> Response:
        """Return the question to an order, and the ticket that answers it."""
        try:
            wanted = await _body(request, WantedOrder)
            order = await self._queries.ask(lambda reader: ordered(reader, wanted))
        except BatchdError as error:
            return _refused(error, _code(error))
        ticket = self._drafts.keep(order, session(request.scope, request.headers))
        return _answer({"question": order.question, "ticket": ticket})

    async def confirmed(self, request: Request) -> Response:
        """Carry a confirmed order out, and return what came of it, in lines."""
        shown = session(request.scope, request.headers)
        try:
            order = self._drafts.take((await _body(request, Confirmation)).ticket, shown)
        except BatchdError as error:
            return _refused(error, 409)
        if self._under_way >= _MAX_ORDERS:
            busy = UsageError(f"{_MAX_ORDERS} orders are being carried out: try again")
            return _refused(busy, 503)
        self._under_way += 1
        try:
            via = _giver(request, shown)
            return _answer(await apart(lambda: self._carried_out(order, via)))
        except NoAnswerError as error:
            return _refused(error, 504)
        except NoDaemonError:
            why = NoDaemonError(
                f"no daemon runs here: `batchd {order.command}` does it without one"
            )
            return _refused(why, 409)
        except BatchdError as error:
            return _refused(error, _code(error))
        finally:
            self._under_way -= 1

    def _carried_out(self, order: WebOrder, via: str) -> Mapping[str, Any]:
        """Return what the daemon's answer says, and which batches are new.

        Raises ``BatchdError``.
        """
        try:
            answer = control.ask(self._state, order.request, timeout_s=_PATIENCE_S, via=via)
        except OSError as error:
            raise NoDaemonError(f"the daemon cannot be asked: {error.strerror}") from None
        batches = [run.batch for run in answer.runs] if isinstance(answer, Retried) else []
        return {"lines": order.lines(answer), "batches": batches}


async def _body(request: Request, kind: type[T]) -> T:
    """Return what a request says. Raises ``UsageError``."""
    said = b""
    try:
        async with asyncio.timeout(_SLOWEST_S):
            async for part in request.stream():
                said += part
                if len(said) > _MAX_REQUEST_BYTES:
                    raise UsageError(f"an order has at most {_MAX_REQUEST_BYTES} bytes")
    except (TimeoutError, ClientDisconnect):
        raise UsageError("the request never ended") from None
    try:
        return decoders.decode(said, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"not an order: {error}") from None


async def apart(work: Callable[[], T]) -> T:
    """Return what work in a thread of its own returns, or raise what it raises;
    the process need not wait for it to end.
    """
    loop = asyncio.get_running_loop()
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    ended = asyncio.Event()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 (a thread's outer edge: it is raised below)
            outcome.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="order", daemon=True).start()
    await ended.wait()
    return outcome.result()


def _giver(request: Request, shown: str) -> str:
    """Return whose order it is, for the daemon's log: which session, from which address."""
    mark = hashlib.sha256(shown.encode()).hexdigest()[:8]
    address = request.client.host if request.client else "an unknown address"
    forwarded = request.headers.get("x-forwarded-for", "")
    said = f", which says it asks for {ascii(forwarded[:_FORWARDED])[1:-1]}" if forwarded else ""
    return f"web session {mark} from {address}{said}"


def _code(error: BatchdError) -> int:
    """Return how HTTP says why an order was refused."""
    kinds = ((UnknownNameError, 404), (ForbiddenError, 403), (UsageError, 400))
    return next((code for kind, code in kinds if isinstance(error, kind)), 409)


def _answer(value: object, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")


def _refused(error: BatchdError, code: int) -> Response:
    return _answer({"error": str(error)}, code)
