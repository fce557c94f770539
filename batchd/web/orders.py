"""What browsers may order: it is asked for, confirmed, and goes to the daemon as a command does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from batchd import control, decoders
from batchd.control import Order, Retried
from batchd.control.orders import ORDERS
from batchd.errors import UsageError
from batchd.pauses import aside
from batchd.records import Ref, Scope, TargetCounts
from batchd.spool.ulid import ulid
from batchd.store.queries import StoreReader
from batchd.web.shield import ASKED, CONFIRMED, session
from batchd.web.store_queries import StoreQueries

#: Orders of the command line, by their names there.
Verb: TypeAlias = Literal["cancel", "pause", "resume", "retry"]


class WantedOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order as a page asks for it."""

    verb: Verb
    scope: Scope
    #: Of the batch, task (``BATCH/TASK``), provider or model.
    name: str = ""
    #: Of a retry: only what did not complete.
    failed: bool = False
    #: Of an order that is confirmed: the mark that came with the question. A yes that is sent
    #: twice is one retry by it.
    claim: str = ""


def ordered(reader: StoreReader, wanted: WantedOrder) -> tuple[Order[Any], str]:
    """Return the order that is wanted, and what is asked before it is given.

    Raises ``UsageError``, and ``UnknownNameError`` for what there is not.
    """
    verb, scope, name = wanted.verb, wanted.scope, wanted.name
    batch, slash, task = name.partition("/")
    of_tasks = scope in {Scope.BATCH, Scope.TASK}
    if verb in {"cancel", "retry"} or of_tasks:
        if (
            not batch
            or bool(slash) is not bool(task)
            or scope is not (Scope.TASK if task else Scope.BATCH)
        ):
            raise UsageError(f"{verb} takes a batch or a task, with its name")
    elif scope is Scope.DAY or bool(name) is (scope is Scope.ALL):
        raise UsageError(f"{verb} takes all, or the name of a provider, model, batch or task")
    counts = TargetCounts(0, 0, 0)
    if of_tasks:
        counts = (reader.task(Ref(batch, task)) if task else reader.batch(batch)).counts
    order = ORDERS[verb].of({**msgspec.structs.asdict(wanted), "target": (name,)})
    return order, " ".join(filter(None, order.question(counts)))


#: Orders that are carried out at once.
_MAX_ORDERS = 8
#: Bytes of a request, and how long it may take to come (seconds).
_MAX_REQUEST_BYTES = 4096
_SLOWEST_S = 10.0
#: Characters of what a proxy says of whom it asks for.
_FORWARDED = 60


class Ordering:
    """Takes orders from browsers to the daemon."""

    def __init__(self, state: Path, queries: StoreQueries) -> None:
        self._state = state
        self._queries = queries
        self._under_way = 0

    def routes(self) -> Sequence[Route]:
        """Return where orders are asked for, and confirmed."""
        return (
            Route(ASKED, self.asked, methods=["POST"]),
            Route(CONFIRMED, self.confirmed, methods=["POST"]),
        )

    async def asked(self, request: Request) -> Response:
        """Return the question to an order, and the mark that its yes is to have."""
        _, question = await self._ordered(request)
        return _answer({"question": question, "claim": ulid()})

    async def confirmed(self, request: Request) -> Response:
        """Carry a confirmed order out, and return what came of it, in lines."""
        if self._under_way >= _MAX_ORDERS:
            raise HTTPException(503, f"{_MAX_ORDERS} orders are being carried out: try again")
        self._under_way += 1
        try:
            order, _ = await self._ordered(request, confirmed=True)
            via = _giver(request, session(request.scope, request.headers))
            answer = await aside(lambda: control.give(self._state, order, via=via), "order")
        finally:
            self._under_way -= 1
        batches = [run.batch for run in answer.runs] if isinstance(answer, Retried) else []
        return _answer({"lines": [*order.say(answer)], "batches": batches})

    async def _ordered(
        self, request: Request, *, confirmed: bool = False
    ) -> tuple[Order[Any], str]:
        """Return the order that a request wants, and its question. Raises ``BatchdError``."""
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
            wanted = decoders.decode(said, WantedOrder)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"not an order: {error}") from None
        if bool(wanted.claim) is not confirmed:
            raise UsageError("an order is asked for, and confirmed with the claim of its question")
        return await self._queries.ask(lambda reader: ordered(reader, wanted))


def _giver(request: Request, shown: str) -> str:
    """Return whose order it is, for the daemon's log: which session, from which address."""
    mark = hashlib.sha256(shown.encode()).hexdigest()[:8]
    address = request.client.host if request.client else "an unknown address"
    forwarded = request.headers.get("x-forwarded-for", "")
    said = f", which says it asks for {ascii(forwarded[:_FORWARDED])[1:-1]}" if forwarded else ""
    return f"web session {mark} from {address}{said}"


def _answer(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
