"""What browsers may order: it is asked for, confirmed, and goes to the daemon as a command does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from batchd import control, decoders, processes, words
from batchd.config import Config
from batchd.control import Order, Retried, Retry, Submitted
from batchd.control.orders import ORDERS
from batchd.errors import BatchdError, ForbiddenError, NoDaemonError, NotPossibleError, UsageError
from batchd.log import Action, get_logger
from batchd.pauses import aside
from batchd.records import Ref, Scope, TargetCounts
from batchd.spool import claims, inbox
from batchd.spool.ulid import LENGTH, marked, time_of, ulid
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow
from batchd.web import made
from batchd.web.shield import (
    ASKED,
    CONFIRMED,
    FILE_TYPE,
    ORDER_HEADER,
    TokenCheck,
    as_json,
    session,
)
from batchd.web.store_queries import StoreQueries

#: Orders by their names on the command line. Two are none of the daemon's: what a patch has goes
#: into its repository, and a task file to whom the inbox's go.
Verb: TypeAlias = Literal["cancel", "pause", "resume", "retry", "apply", "submit"]


class WantedOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order as a page asks for it."""

    verb: Verb
    scope: Scope = Scope.ALL
    #: Of the batch, task (``BATCH/TASK``), provider or model; of a task file.
    name: str = ""
    #: Of a retry: only what did not complete, and the model to use, if not their own.
    failed: bool = False
    model: str = ""
    #: Of a patch: the hash of the one that was shown. Of a task file: how many bytes it has.
    sha256: str = ""
    size: int = 0
    #: Of an order that is confirmed: the ticket that came with the question.
    claim: str = ""


def ordered(reader: StoreReader, wanted: WantedOrder) -> tuple[Order[Any], str]:
    """Return the order to the daemon that is wanted, and what is asked before it is given.

    Raises ``UsageError``, and ``UnknownNameError`` for what there is not.
    """
    verb, scope, name = wanted.verb, wanted.scope, wanted.name
    row: TaskRow | BatchRow | None = None
    if verb in {"cancel", "retry"} or scope in {Scope.BATCH, Scope.TASK}:
        batch, task = words.split_target(name)
        if scope is not (Scope.TASK if task else Scope.BATCH):
            raise UsageError(f"{verb} takes a batch or a task, with its name")
        row = reader.task(Ref(batch, task)) if task else reader.batch(batch)
    elif scope is Scope.DAY or bool(name) is (scope is Scope.ALL):
        raise UsageError(f"{verb} takes all, or the name of a provider, model, batch or task")
    fields = {**msgspec.structs.asdict(wanted), "claim": wanted.claim[:LENGTH], "target": (name,)}
    order = ORDERS[verb].of(fields)
    asked = [*order.question(row.counts if row else TargetCounts(0, 0, 0))]
    if isinstance(order, Retry) and row and row.tally.calls:
        cost = words.at_least(row.tally.cost_usd, row.tally.known_usd)
        asked.append(f"So far {name} has cost {cost}.")
    return order, " ".join(filter(None, asked))


def _patch(reader: StoreReader, wanted: WantedOrder) -> tuple[made.PatchOffer, str]:
    """Return which patch goes where, and what is asked before it does. Raises ``BatchdError``."""
    batch, task = words.split_target(wanted.name)
    offer = made.offered(reader, Ref(batch, task))
    if offer is None:
        raise NotPossibleError(f"{wanted.name} has no patch that is whole, and may be shown")
    if offer.sha256 != wanted.sha256:
        raise NotPossibleError(
            f"{wanted.name} has another patch than the page shows: load it again"
        )
    if not offer.ours:
        raise NotPossibleError(f"this page may not write to {offer.into}; type {offer.command}")
    asked = f"Put this patch into {offer.into}, as a commit on the new branch {offer.branch}?"
    return offer, f"{asked} Files that are checked out stay as they are, and no hook runs."


def _file(wanted: WantedOrder) -> str:
    """Return what is asked before a task file is taken. Raises ``UsageError``."""
    if not wanted.name or not 0 < wanted.size <= _MAX_FILE_BYTES:
        why = "a task file has a name, and at most 16 MB here; `batchd submit` takes larger ones"
        raise UsageError(why)
    name = inbox.file_name(wanted.name)
    return f"Take {name} up ({wanted.size:,} bytes)? What it asks for costs money."


#: Orders that are carried out at once.
_MAX_ORDERS = 8
#: Bytes of an order and of a task file, and how long they may take to come (seconds).
_MAX_ORDER_BYTES, _MAX_FILE_BYTES = 4096, 16 << 20
_SLOWEST_S, _SLOWEST_FILE_S = 10.0, 120.0
#: How long the yes to a question is good, and how long a patch may take (seconds).
_TICKET_S, _APPLY_S = 600.0, 330.0
#: Characters of what a proxy says of whom it asks for.
_FORWARDED = 60


class Ordering:
    """Takes orders from browsers to the daemon."""

    def __init__(self, config: Config, gate: TokenCheck, queries: StoreQueries) -> None:
        self._config = config
        self._state = Path(config.paths.state)
        self._gate = gate
        self._queries = queries
        self._under_way = 0

    def routes(self) -> Sequence[Route]:
        """Return where orders are asked for, and confirmed."""
        return (
            Route(ASKED, self.asked, methods=["POST"]),
            Route(CONFIRMED, self.confirmed, methods=["POST"]),
        )

    async def asked(self, request: Request) -> Response:
        """Return the question to an order, the ticket that its yes is to have, and which models it
        may name.
        """
        wanted = self._wanted(await _body(request, _MAX_ORDER_BYTES, _SLOWEST_S))
        if wanted.claim:
            raise UsageError(_UNASKED)
        if wanted.verb == "submit":
            question = _file(wanted)
        else:
            ask = _patch if wanted.verb == "apply" else ordered
            _, question = await self._queries.ask(lambda reader: ask(reader, wanted))
        claim = self._ticket(request, msgspec.structs.replace(wanted, claim=ulid()))
        return as_json({"question": question, "claim": claim, "models": self._models(wanted)})

    async def confirmed(self, request: Request) -> Response:
        """Carry a confirmed order out, and return what came of it, in lines."""
        if self._under_way >= _MAX_ORDERS:
            raise HTTPException(503, f"{_MAX_ORDERS} orders are being carried out: try again")
        self._under_way += 1
        try:
            lines, batches = await self._carried_out(request)
        finally:
            self._under_way -= 1
        return as_json({"lines": lines, "batches": batches})

    async def _carried_out(self, request: Request) -> tuple[list[str], list[str]]:
        """Return what came of a confirmed order, in lines, and which batches it made."""
        if file := request.headers["content-type"].lower().startswith(FILE_TYPE):
            wanted = self._wanted(request.headers.get(ORDER_HEADER, "").encode())
        else:
            wanted = self._wanted(await _body(request, _MAX_ORDER_BYTES, _SLOWEST_S))
        self._insist(request, wanted)
        if file is not (wanted.verb == "submit"):
            raise UsageError("a task file comes with the order to submit it, and with no other")
        via = _giver(request, session(request.scope))
        if file:
            data = await _body(request, wanted.size, _SLOWEST_FILE_S)
            return await self._submitted(wanted, data, via)
        if wanted.verb == "apply":
            offer, _ = await self._queries.ask(lambda reader: _patch(reader, wanted))
            return await self._applied(offer, via), []
        order, _ = await self._queries.ask(lambda reader: ordered(reader, wanted))
        answer = await aside(lambda: control.give(self._state, order, via=via), "order")
        batches = [run.batch for run in answer.runs] if isinstance(answer, Retried) else []
        return [*order.say(answer)], batches

    def _wanted(self, said: bytes) -> WantedOrder:
        """Return the order that a request wants. Raises ``UsageError``, ``ForbiddenError``."""
        try:
            wanted = decoders.decode(said, WantedOrder)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"not an order: {error}") from None
        if wanted.verb not in self._config.web.verbs:
            known = ", ".join(self._config.web.verbs)
            raise ForbiddenError(f"[web] orders does not name {wanted.verb}: it allows {known}")
        return wanted

    def _ticket(self, request: Request, wanted: WantedOrder) -> str:
        """Return what a yes to this very order shows, in this session."""
        shown = session(request.scope)
        return f"{wanted.claim}.{self._gate.ticket(shown, msgspec.json.encode(wanted))}"

    def _insist(self, request: Request, wanted: WantedOrder) -> None:
        """Return if an order is one that was asked for. Raises ``UsageError``.

        A yes may come twice, as its answer was lost: by what its ticket begins with, a retry and a
        task file are one batch; a patch finds its branch there.
        """
        claim = wanted.claim[:LENGTH]
        if not claim:
            raise UsageError(_UNASKED)
        right = self._ticket(request, msgspec.structs.replace(wanted, claim=claim))
        if not hmac.compare_digest(wanted.claim.encode(), right.encode()):
            raise UsageError("this is the yes to another question: ask again")
        if time.time() - time_of(claim) > _TICKET_S:
            raise UsageError("the question is older than ten minutes: ask again")

    def _models(self, wanted: WantedOrder) -> list[str]:
        """Return the models that an order can name: those of the configuration."""
        known = dict.fromkeys((self._config.agent.model, *self._config.models))
        there = (each for each in known if each.partition("/")[0] in self._config.providers)
        return [*there] if wanted.verb == "retry" else []

    async def _applied(self, offer: made.PatchOffer, via: str) -> list[str]:
        """Have the command put a patch into its repository; return what it says.

        Raises ``NotPossibleError``, with what it says.
        """
        options = ["--config", self._config.file] if self._config.file else []
        what = (f"--branch={offer.branch}", "--new", f"--sha256={offer.sha256}")
        given = (*what, "--own", f"--into={offer.into}", "--", offer.task)
        process = await asyncio.create_subprocess_exec(
            *processes.module("batchd.cli", *options, "apply", *given),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,
        )
        try:
            async with asyncio.timeout(_APPLY_S):
                said, why = await process.communicate()
        except TimeoutError:
            raise NotPossibleError(f"it takes too long; type {offer.command}") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            text = why.decode("utf-8", "replace").strip().removeprefix("batchd: ")
            raise NotPossibleError(f"{text}\nTo do it yourself: {offer.command}")
        lines = said.decode("utf-8", "replace").splitlines()
        get_logger().info(Action.COMMAND_DONE, verb="apply", via=via, message=" ".join(lines))
        return lines

    async def _submitted(
        self, wanted: WantedOrder, data: bytes, via: str
    ) -> tuple[list[str], list[str]]:
        """Have a task file taken up as if it had been dropped; return what came of it."""
        if len(data) != wanted.size:
            raise UsageError(f"{len(data):,} bytes came, and not the {wanted.size:,} asked for")
        taken = await aside(lambda: self._handed_over(wanted, data, via), "submit")
        if not taken.batch:
            return ["The daemon is ending. The file is taken up when it is started again."], []
        row = await self._queries.ask(lambda reader: reader.batch(taken.batch))
        if row.problems:
            return [f"Refused, as {taken.batch}:", *map(str, row.problems)], [taken.batch]
        return [f"Taken up as {taken.batch}: {words.counted(taken.tasks, 'task')}"], [taken.batch]

    def _handed_over(self, wanted: WantedOrder, data: bytes, via: str) -> Submitted:
        """Lay a task file where claims of the inbox lie, and have the daemon take it up."""
        if not control.ask(self._state, control.AskStatus()).watching:
            raise NoDaemonError("the daemon works for `batchd run` alone: start `batchd serve`")
        claim = marked(wanted.claim[:LENGTH], claims.mark(self._state))
        order = control.Submit(claim=claim)
        with StoreReader(self._queries.path) as reader:
            if reader.read(lookups.claimed, claim):  # the same yes, once more
                return control.ask(self._state, order, via=via)
        try:
            lies = claims.hand_over(self._state, inbox.file_name(wanted.name), data, claim)
            if os.geteuid() == 0:  # the daemon's user must be able to read it, too
                owner = self._state.stat()
                os.chown(lies.path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        except FileExistsError:  # the same yes, while the first is on its way
            return control.ask(self._state, order, timeout_s=control.PATIENCE_S, via=via)
        except OSError as error:
            raise NotPossibleError(f"{error.filename or self._state}: {error.strerror}") from None
        try:
            return control.ask(self._state, order, timeout_s=control.PATIENCE_S, via=via)
        except NoDaemonError as error:
            later = "the file is taken up when it goes on, or is started again"
            raise NoDaemonError(f"{error}: {later}") from None
        except BatchdError:
            lies.path.unlink(missing_ok=True)
            raise


_UNASKED = "an order is asked for, and confirmed with the claim of its question"


async def _body(request: Request, most: int, slowest_s: float) -> bytes:
    """Return what a request brings. Raises ``UsageError``."""
    said = bytearray()
    try:
        async with asyncio.timeout(slowest_s):
            async for part in request.stream():
                said += part
                if len(said) > most:
                    raise UsageError(f"this request may have {most:,} bytes, and has more")
    except (TimeoutError, ClientDisconnect):
        raise UsageError("the request never ended") from None
    return bytes(said)


def _giver(request: Request, shown: str) -> str:
    """Return whose order it is, for the daemon's log: which session, from which address."""
    mark = hashlib.sha256(shown.encode()).hexdigest()[:8]
    address = request.client.host if request.client else "an unknown address"
    forwarded = request.headers.get("x-forwarded-for", "")
    said = f", which says it asks for {ascii(forwarded[:_FORWARDED])[1:-1]}" if forwarded else ""
    return f"web session {mark} from {address}{said}"
