"""The provider behind the stand-in's door: accounts, limits, and what each request comes to."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import time
from collections.abc import Iterable

import msgspec
from aiohttp import web
from msgspec import structs

from batchd.demo.recordings import Recording
from standin import cache_meter, delivery, families, faults
from standin.cache_meter import Prompt
from standin.delivery import Letter
from standin.dialects import ServedDialect
from standin.exchanges import Exchange, Exchanges
from standin.faults import Fault, HttpRefusal
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
        self._meter = cache_meter.CacheMeter()
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
        known = {name: family.ends for name, family in families.FAMILIES.items()}
        numbered = (f"{script}-{n}" for script in faults.SCRIPTS for n in range(1, _NUMBERS))
        every = {**dict.fromkeys((*faults.NAMES, *numbered), ""), **known}
        return dialect.models(self.settings.models or every)

    async def answer(self, http: web.BaseRequest, dialect: ServedDialect) -> web.StreamResponse:
        """Answer one request."""
        data = await http.read()
        key = dialect.key(http.headers)
        caller = Caller(self.settings.accounts.get(key) or _account(key), http.headers)
        try:
            request = dialect.parse(data, caller)
        except InvalidRequestError as exc:
            exchange = self.log.begin(dialect.name, None, data)
            exchange.account = caller.account
            visit = _Visit(http, dialect, exchange, caller.account)
            try:
                return await self._refuse(visit, dialect.invalid(exc))
            finally:
                self.log.end(exchange)
        exchange = self.log.begin(dialect.name, request, data)
        try:
            return await self._respond(_Visit(http, dialect, exchange, caller.account), request)
        finally:
            self.log.end(exchange)

    async def _respond(self, visit: _Visit, request: SimulatedRequest) -> web.StreamResponse:
        settings, dialect = self.settings, visit.dialect
        if settings.down:
            return delivery.cut(visit.http)
        if settings.api_key and dialect.key(visit.http.headers) != settings.api_key:
            return await self._refuse(visit, dialect.refusal(Fault("401", request.model)))
        limit = self._over_limit(time.monotonic())
        limits = self._limits()
        if limit:
            refusal, wait_s = dialect.refusal(limit), settings.retry_after_s or None
            return await self._refuse(visit, refusal, limits, wait_s)
        plan = self._planner.plan(request, settings, self._now())
        if plan.refusal:
            refusal = dialect.refusal(plan.refusal)
            wait_s = plan.retry_after_s if refusal.retry or plan.retry_always else None
            await asyncio.sleep(plan.latency_s)
            return await self._refuse(visit, refusal, limits, wait_s)
        bill = self._bill(request, plan)
        if self._tokens.rps:
            # What is read from the cache uses up nothing where the vendor has such rules.
            read = 0 if request.cache is None else bill.usage.cached_input_tokens
            self._tokens.spend(bill.usage.total_tokens - read)
            limits = self._limits()
        pace = settings.tokens_per_second
        heading = self._heading(request, plan, bill)
        letter = Letter(
            dialect=dialect,
            request=request,
            plan=plan,
            heading=heading,
            bill=bill,
            headers=dialect.headers(limits, visit.account, f"req_{heading.id}"),
            pause_s=plan.latency_s + (bill.usage.output_tokens / pace if pace else 0.0),
        )
        return await delivery.deliver(visit.http, visit.exchange, letter)

    def _heading(self, request: SimulatedRequest, plan: AnswerPlan, bill: Bill) -> Heading:
        return Heading(
            id=f"{next(self._ids):08x}",
            created=int(time.time()),
            model=request.model,
            stopped=plan.stopped,
            thought_tokens=bill.usage.reasoning_tokens,
            sealed_size=plan.sealed_size,
            redacted=plan.redacted,
        )

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
        body = visit.dialect.error(refusal, name)
        return await delivery.refuse(visit.http, visit.exchange, refusal, body, headers)

    def _now(self) -> float:
        """Return the time by which caches age."""
        return time.monotonic() + self.settings.aged_s

    def _over_limit(self, now: float) -> Fault | None:
        """Return how a request is refused that comes too soon after others."""
        if not self._tokens.admit(now):
            return Fault("token-limit")
        return None if self._limiter.admit(now) else Fault("rate-limit")

    def _limits(self) -> tuple[Limit, ...]:
        if not self.settings.limit_headers:
            return ()
        return (*self._limiter.limits(), *self._tokens.limits())

    def _bill(self, request: SimulatedRequest, plan: AnswerPlan) -> Bill:
        usage, prompt = cache_meter.FIXED, Prompt(cache_meter.FIXED.input_tokens)
        if self.settings.count:
            usage, prompt = self._meter.usage(request, plan.answer, self._now())
        if plan.cache_write:
            fresh = usage.input_tokens - usage.cached_input_tokens
            usage = structs.replace(usage, cache_write_tokens=fresh)
        prices = request.family.prices if request.family else None
        long_writes = prompt.written_long
        return Bill(
            usage=usage,
            long_writes=long_writes,
            seen=prompt.seen,
            tier=plan.tier,
            cost=prices.cost(usage, long_writes, plan.tier, self.settings.now or time.time())
            if prices
            else None,
        )


@functools.lru_cache(1024)
def _account(key: str) -> str:
    """Return the name of the account of a key that is not configured: one of its own."""
    if not key:
        return "org-stand-in"
    return "org-" + hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
