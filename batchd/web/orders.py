"""What browsers may order: which request to the daemon it is,
what is asked before it is given, and what its answer says.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from batchd import control, decoders, words
from batchd.control import (
    Cancel,
    Cancelled,
    ControlRequest,
    Pause,
    Paused,
    Resume,
    ResumedScope,
    Retried,
    Retry,
)
from batchd.control.requests import A
from batchd.errors import (
    BatchdError,
    ForbiddenError,
    NoAnswerError,
    NoDaemonError,
    UnknownNameError,
    UsageError,
)
from batchd.records import Ref, Scope, TaskStatus
from batchd.spool.ulid import ulid
from batchd.store.reader import StoreReader
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOrder:
    """An order that is ready to be given."""

    request: ControlRequest[Any]
    #: What is asked before it is given.
    question: str
    #: The command that does the same, which needs no daemon.
    command: str
    #: Makes lines of the answer.
    lines: Callable[[Any], list[str]]


def ordered(reader: StoreReader, wanted: WantedOrder) -> WebOrder:
    """Return the order that is wanted.

    Raises ``UsageError``, and ``UnknownNameError`` for what there is not.
    """
    if wanted.verb in {"cancel", "retry"}:
        batch, task = _target(wanted)
        return (
            _cancelling(reader, batch, task)
            if wanted.verb == "cancel"
            else _retrying(reader, batch, task, wanted)
        )
    scope, name = wanted.scope, wanted.name
    if scope is Scope.DAY or bool(name) is (scope is Scope.ALL):
        raise UsageError(
            f"{wanted.verb} takes all, or the name of a provider, model, batch or task"
        )
    if scope in {Scope.BATCH, Scope.TASK}:
        _known(reader, *_target(wanted))
    return _pausing(scope, name) if wanted.verb == "pause" else _resuming(scope, name)


def _target(wanted: WantedOrder) -> tuple[str, str]:
    """Return the batch and the task that an order is about; no task: all of the batch.

    Raises ``UsageError``.
    """
    batch, slash, task = wanted.name.partition("/")
    if (
        not batch
        or wanted.scope is not (Scope.TASK if task else Scope.BATCH)
        or (slash and not task)
    ):
        raise UsageError(f"{wanted.verb} takes a batch or a task, with its name")
    return batch, task


def _known(reader: StoreReader, batch: str, task: str) -> None:
    """Return if there is such a batch or task. Raises ``UnknownNameError``."""
    if task:
        reader.task(Ref(batch, task))
    else:
        reader.batch(batch)


def _order(
    request: ControlRequest[A], question: str, command: str, lines: Callable[[A], list[str]]
) -> WebOrder:
    """Return an order whose lines are made of the answer that its request gets."""
    return WebOrder(request=request, question=question, command=command, lines=lines)


def _cancelling(reader: StoreReader, batch: str, task: str) -> WebOrder:
    name = f"{batch}/{task}" if task else batch
    if task:
        left = int(not reader.task(Ref(batch, task)).status.final)
    else:
        row = reader.batch(batch)
        left = row.tasks - row.finished
    if not left:
        raise UsageError(f"{name} has ended already: there is nothing to cancel")
    what = f"Cancel {words.named('task' if task else 'batch', name)}?"
    said = (
        "It ends now"
        if task
        else f"{words.counted(left, 'task')} that {'has' if left == 1 else 'have'} not ended end{'s' if left == 1 else ''} now"
    )
    question = (
        f"{what} {said}, as cancelled, and so does what comes after it. This cannot be taken back."
    )
    return _order(Cancel(target=(name,)), question, f"cancel {name}", _cancelled)


def _cancelled(answer: Cancelled) -> list[str]:
    over = [f"{each.target} has ended already" for each in answer.ended]
    return [f"{words.counted(answer.cancelled, 'task')} cancelled", *over]


def _retrying(reader: StoreReader, batch: str, task: str, wanted: WantedOrder) -> WebOrder:
    name, failed = wanted.name, wanted.failed
    if task:
        row = reader.task(Ref(batch, task))
        count, done = int(row.status.final), int(row.status is TaskStatus.COMPLETED)
    else:
        every = reader.batch(batch)
        count, done = every.finished, every.completed
    again = count - done if failed else count
    if not again:
        raise UsageError(
            f"nothing of {name} {'has failed' if failed else 'has ended'}: there is nothing to run again"
        )
    paid = (
        f" {words.counted(done, 'task')} completed before, and costs money again."
        if done and not failed
        else ""
    )
    what = "" if task else f" {words.counted(again, 'task')}, as a new batch."
    return _order(
        Retry(target=(name,), failed=failed, claim=wanted.claim),
        f"Run {words.named('task' if task else 'batch', name)} again{', what did not complete' if failed else ''}?{what}{paid}",
        f"retry {'--failed ' if failed else ''}{name}",
        lambda answer: [
            f"{run.batch}: {words.counted(run.tasks, 'task')} of {run.retry_of} queued again"
            for run in answer.runs
        ],
    )


def _pausing(scope: Scope, name: str) -> WebOrder:
    what = words.named(scope, name)

    def lines(answer: Paused) -> list[str]:
        return [f"{what} is paused: {words.counted(answer.parked, 'task')}"]

    question = f"Pause {what}? Nothing of it starts, and what runs stops at its next step, until it is resumed."
    return _order(
        Pause(scope=scope, name=name), question, f"pause {words.option(scope, name)}", lines
    )


def _resuming(scope: Scope, name: str) -> WebOrder:
    what = words.named(scope, name)

    def lines(answer: ResumedScope) -> list[str]:
        held = [words.why(each.cause, each.message) for each in answer.held]
        tried = [f"{each} is tried with one call first" for each in answer.trying]
        first = f"{what} goes on" if answer.resumed else f"{what}: nothing was parked"
        return [first, *tried, *(f"It still waits: {each}" for each in held)]

    question = f"Let {what} go on? What it starts costs money."
    return _order(
        Resume(scope=scope, name=name), question, f"resume {words.option(scope, name)}", lines
    )


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
        try:
            order = await self._ordered(request)
        except BatchdError as error:
            return _refused(error, _code(error))
        return _answer({"question": order.question, "claim": ulid()})

    async def confirmed(self, request: Request) -> Response:
        """Carry a confirmed order out, and return what came of it, in lines."""
        if self._under_way >= _MAX_ORDERS:
            busy = UsageError(f"{_MAX_ORDERS} orders are being carried out: try again")
            return _refused(busy, 503)
        self._under_way += 1
        try:
            order = await self._ordered(request, confirmed=True)
            via = _giver(request, session(request.scope, request.headers))
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

    async def _ordered(self, request: Request, *, confirmed: bool = False) -> WebOrder:
        """Return the order that a request wants. Raises ``BatchdError``."""
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
