"""The provider behind the stand-in's door: accounts, limits, what each request comes to, and how
that goes over the wire: whole, or broken in the way that was asked for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping

import msgspec
from aiohttp import web

from batchd.demo.recordings import Recording
from standin import cache_meter, faults, scripts
from standin.cache_meter import CacheMeter, Prompt
from standin.dialects import ServedDialect
from standin.exchanges import Exchange, Exchanges
from standin.faults import HttpRefusal
from standin.limiter import Limit, Limiter
from standin.planner import AnswerPlan, Planner
from standin.settings import ServerSettings
from standin.simulated_request import (
    Bill,
    Caller,
    Heading,
    InvalidRequestError,
    SimulatedRequest,
)

JSON = "application/json"
#: Of each script, so many numbered names stand in the list of models.
_NUMBERS = 20


class _Visit(msgspec.Struct, frozen=True):
    """A client at the door."""

    http: web.BaseRequest
    dialect: ServedDialect
    exchange: Exchange
    account: str


class SimulatedProvider:
    """Answers requests, in any dialect."""

    def __init__(
        self, settings: ServerSettings, recorded: Iterable[Recording], log: Exchanges
    ) -> None:
        self.settings = settings
        self.log = log
        self._meter = CacheMeter()
        self._planner = Planner(recorded, self._meter)
        self._ids = itertools.count(1)
        self._limiter = Limiter(0, 1, 0)
        self._tokens = Limiter(0, 1, 0, "tokens")

    def retune(self, settings: ServerSettings) -> None:
        """Take other settings."""
        now = time.monotonic()
        new = (settings.rps, max(1.0, settings.burst))
        if new != (self._limiter.rps, self._limiter.burst):
            self._limiter = Limiter(*new, now)
        new = (settings.tps, max(1.0, settings.token_burst))
        if new != (self._tokens.rps, self._tokens.burst):
            self._tokens = Limiter(*new, now, "tokens")
        self.settings = settings

    def reset(self) -> None:
        """Forget all that was, but what is in the caches."""
        self.log.reset()
        self._planner.reset()

    def models(self, dialect: ServedDialect) -> object:
        """Return the list of models, as a vendor writes it:
        of scripts, the names with small numbers.
        """
        numbered = (f"{script}-{n}" for script in scripts.TURNS for n in range(1, _NUMBERS))
        return dialect.models(
            self.settings.models or dict.fromkeys((*sorted(scripts.NAMES), *numbered), "")
        )

    async def answer(self, http: web.BaseRequest, dialect: ServedDialect) -> web.StreamResponse:
        """Answer one request."""
        data = await http.read()
        caller = Caller(_account(dialect.key(http.headers)), http.headers)
        request = wrong = None
        try:
            request = dialect.parse(data, caller)
        except InvalidRequestError as exc:
            wrong = dialect.invalid(exc)
        exchange = self.log.begin(dialect.name, request, data)
        visit = _Visit(http, dialect, exchange, caller.account)
        try:
            if request is None:
                assert wrong is not None
                return await self._refuse(visit, wrong)
            return await self._respond(visit, request)
        finally:
            self.log.end(exchange)

    async def _respond(self, visit: _Visit, request: SimulatedRequest) -> web.StreamResponse:
        settings, dialect = self.settings, visit.dialect
        if settings.down:
            return cut(visit.http)
        if settings.api_key and dialect.key(visit.http.headers) != settings.api_key:
            return await self._refuse(visit, dialect.words["401"])
        now = time.monotonic()
        # As providers do: the tokens first, of which a request costs none by itself.
        limited = next((x.of for x in (self._tokens, self._limiter) if not x.admit(now)), "")
        limits = self._limits()
        if limited:
            words = dialect.words["token-limit" if limited == "tokens" else "rate-limit"]
            return await self._refuse(visit, words, limits, settings.retry_after_s or None)
        plan = self._planner.plan(request, settings)
        if plan.refusal:
            refusal = faults.refusal(dialect.words, plan.refusal)
            wait_s = plan.retry_after_s if refusal.retry or plan.retry_always else None
            await asyncio.sleep(plan.latency_s)
            return await self._refuse(visit, refusal, limits, wait_s)
        bill = self._bill(request, plan)
        if self._tokens.rps:
            # What is read from the cache uses up nothing where the vendor has such rules.
            read = 0 if request.cache is None else bill.usage.cached_input_tokens
            self._tokens.spend(bill.usage.total_tokens - read)
            limits = self._limits()
        heading = Heading(
            id=f"{next(self._ids):08x}",
            created=int(time.time()),
            model=request.model,
            stopped=plan.stopped,
            thought_tokens=bill.usage.reasoning_tokens,
            sealed_size=plan.sealed_size,
        )
        headers = dialect.headers(limits, visit.account, f"req_{heading.id}")
        return await self._deliver(visit, request, plan, heading, bill, headers)

    async def _refuse(
        self,
        visit: _Visit,
        refusal: HttpRefusal,
        limits: Iterable[Limit] = (),
        wait_s: float | None = None,
    ) -> web.StreamResponse:
        """Send a refusal, and how long to wait where it says so."""
        name = f"req_{next(self._ids):08x}"
        headers = visit.dialect.headers(limits, visit.account, name)
        if wait_s is not None:
            headers["Retry-After"] = f"{wait_s:g}"
        visit.exchange.status = refusal.status
        body = visit.dialect.error(refusal, name)
        reply = web.Response(status=refusal.status, body=body, content_type=JSON, headers=headers)
        return await _whole(visit, reply)

    def _limits(self) -> tuple[Limit, ...]:
        if not self.settings.limit_headers:
            return ()
        return (*self._limiter.limits(), *self._tokens.limits())

    def _bill(self, request: SimulatedRequest, plan: AnswerPlan) -> Bill:
        usage, prompt = cache_meter.FIXED, Prompt(cache_meter.FIXED.input_tokens)
        if self.settings.count:
            usage, prompt = self._meter.usage(request, plan.answer)
        prices = request.family.prices if request.family else None
        at = self.settings.now or time.time()
        return Bill(
            usage=usage,
            seen=prompt.seen,
            tier=request.tier,
            cost=prices.cost(usage, request.tier, at) if prices else None,
        )

    async def _deliver(
        self,
        visit: _Visit,
        request: SimulatedRequest,
        plan: AnswerPlan,
        heading: Heading,
        bill: Bill,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Send an answer as planned. A client that gives up raises ``CancelledError`` here."""
        how, exchange, pace = plan.delivery, visit.exchange, self.settings.tokens_per_second
        if how == "hang":
            await asyncio.Event().wait()
        if how == "cut":
            return cut(visit.http)
        await asyncio.sleep(plan.latency_s + (bill.usage.output_tokens / pace if pace else 0.0))
        stated = bill if plan.usage else None
        content_type = JSON
        match how:
            case "html":
                body, content_type = faults.HTML, "text/html"
            case "error-200":
                body = visit.dialect.error(visit.dialect.words[how], heading.id)
            case "failed":
                body = request.writer.failed(heading)
            case "no-choices":
                body = visit.dialect.nothing
            case _:
                body = request.writer.whole(heading, plan.answer, stated)
        if how == "broken-json":
            body = body[: len(body) // 2]
        exchange.status = 200
        if exchange.request:
            exchange.answer = body.decode("utf-8", "replace")
        if how in {"", "drip"} and stated is not None:
            exchange.settle(stated)
        headers = {**headers, "Content-Type": content_type}
        if how in {"hang-body", "cut-body", "drip"}:
            return await _badly(visit, how, body, headers)
        return await _whole(visit, web.Response(body=body, headers=headers))


def cut(http: web.BaseRequest) -> web.StreamResponse:
    """Close the connection; what was written before still goes out."""
    if http.transport is not None:
        http.transport.close()
    return web.Response()


async def _whole(visit: _Visit, reply: web.StreamResponse) -> web.StreamResponse:
    """Send the rest of a reply here, and not behind the handler's back:
    the log says what was delivered.
    """
    await reply.prepare(visit.http)
    await reply.write_eof()
    visit.exchange.delivered = True
    return reply


async def _badly(
    visit: _Visit, how: str, body: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send a body with its full length announced, but not at once, or not all of it."""
    reply = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await reply.prepare(visit.http)
    if how == "drip":
        for byte in body:
            await reply.write(bytes([byte]))
            await asyncio.sleep(1)
        return await _whole(visit, reply)
    await reply.write(body[: len(body) // 2])
    if how == "hang-body":
        await asyncio.Event().wait()
    return cut(visit.http)


@functools.lru_cache(1024)
def _account(key: str) -> str:
    """Return the name of a key's account: each key has one of its own."""
    if not key:
        return "org-stand-in"
    return "org-" + hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
