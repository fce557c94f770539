"""The stand-in model server: OpenAI's chat completions on loopback.

    python -m batchd.demo.server --port 8090 --log requests.jsonl

The model's name says how it answers: ``demo`` replays the recordings, the others are scripts and faults, see
``scripts`` and ``faults``. Beside ``/v1`` there are ``GET /log``, ``GET /totals`` and ``POST /control``, which takes
any of ``Settings``, and ``"reset": true`` to forget all that was.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from batchd import tokens
from batchd.demo import chat, delivery, faults, meter, recordings
from batchd.demo.chat import Heading, InvalidRequestError, Request
from batchd.demo.delivery import Letter
from batchd.demo.exchanges import Exchange, Exchanges, Totals
from batchd.demo.faults import Refusal
from batchd.demo.limiter import Limiter
from batchd.demo.planner import Plan, Planner
from batchd.demo.recordings import Recording
from batchd.demo.settings import Settings, changed
from batchd.errors import BatchdError, NotPossibleError
from batchd.records import Usage

#: The largest request body taken, in bytes.
_MAX_BODY = 64 << 20
#: Connections that may wait to be accepted: a thousand agents begin at once.
_BACKLOG = 4096
#: Of each script, so many numbered names stand in the list of models.
_NUMBERS = 20


class ModelServer:
    """The server as an async context manager. Raises ``NotPossibleError`` where it cannot listen."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        port: int = 0,
        log: Path | None = None,
        log_bodies: bool = False,
        recorded: Sequence[Recording] | None = None,
    ) -> None:
        """Take the settings, and the recordings that ``demo`` replays (None: the shipped ones)."""
        self.settings = settings or Settings()
        self.log = Exchanges(log, bodies=log_bodies)
        self.base_url = ""
        if recorded is None:
            recorded = recordings.load(recordings.SHIPPED) if recordings.SHIPPED.is_dir() else ()
        self._meter = meter.Meter()
        self._planner = Planner(recorded, self._meter)
        self._port = port
        self._ids = itertools.count(1)
        self._limiter = Limiter(0, 1, 0)
        self._tokens = Limiter(0, 1, 0, "tokens")

    @property
    def requests(self) -> list[Exchange]:
        """What has been asked so far, oldest first."""
        return list(self.log.kept)

    @property
    def totals(self) -> Totals:
        """The sums over all of it."""
        return self.log.totals

    async def __aenter__(self) -> Self:
        if self.settings.count:
            tokens.load()
        self._retune(self.settings)
        server = web.Server(
            self._handle,
            request_factory=_request,
            # A client that has gone ends its request, or ``hang`` would hold it for ever.
            handler_cancellation=True,
            access_log=None,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=_BACKLOG).start()
        except OSError as exc:
            await self._runner.cleanup()
            raise NotPossibleError(f"cannot listen on port {self._port}: {exc.strerror}") from exc
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/v1"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()
        self.log.close()

    def control(self, **changes: object) -> None:
        """Change settings while it runs; ``reset`` forgets all that was. Raises ``ValueError``."""
        reset = changes.pop("reset", False)
        self._retune(changed(self.settings, changes))
        if reset:
            self.log.reset()
            self._planner.reset()

    def _retune(self, settings: Settings) -> None:
        now = time.monotonic()
        new = (settings.rps, max(1.0, settings.burst))
        if new != (self._limiter.rps, self._limiter.burst):
            self._limiter = Limiter(*new, now)
        new = (settings.tps, max(1.0, settings.token_burst))
        if new != (self._tokens.rps, self._tokens.burst):
            self._tokens = Limiter(*new, now, "tokens")
        self.settings = settings

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        match http.method, http.path.removeprefix("/v1"):
            case "POST", "/chat/completions":
                return await self._complete(http)
            case "GET", "/models":
                return delivery.cut(http) if self.settings.down else _json(_models(self.settings))
            case "GET", "/log":
                return _json(self.requests)
            case "GET", "/totals":
                return _json(self.totals)
            case "POST", "/control":
                return await self._control(http)
        body = chat.error(f"Invalid URL ({http.method} {http.path})", "invalid_request_error")
        return web.Response(status=404, body=body, content_type=delivery.JSON)

    async def _control(self, http: web.BaseRequest) -> web.StreamResponse:
        try:
            self.control(**msgspec.json.decode(await http.read(), type=dict[str, object]))
        except (ValueError, msgspec.MsgspecError) as exc:
            body = chat.error(str(exc), "invalid_request_error")
            return web.Response(status=400, body=body, content_type=delivery.JSON)
        return _json(self.settings)

    async def _complete(self, http: web.BaseRequest) -> web.StreamResponse:
        data = await http.read()
        try:
            request = chat.parse(data)
        except InvalidRequestError as exc:
            exchange = self.log.begin(None, data)
            refusal = Refusal(400, str(exc), "invalid_request_error", exc.code, exc.param)
            try:
                return await delivery.refuse(http, exchange, refusal)
            finally:
                self.log.end(exchange)
        exchange = self.log.begin(request, data)
        try:
            return await self._respond(http, request, exchange)
        finally:
            self.log.end(exchange)

    async def _respond(
        self, http: web.BaseRequest, request: Request, exchange: Exchange
    ) -> web.StreamResponse:
        settings = self.settings
        if settings.down:
            return delivery.cut(http)
        if settings.api_key and http.headers.get("Authorization") != f"Bearer {settings.api_key}":
            return await delivery.refuse(http, exchange, faults.BAD_KEY)
        limit = self._over_limit(time.monotonic())
        limits = self._limits()
        if limit:
            wait_s = settings.retry_after_s or None
            return await delivery.refuse(http, exchange, limit, wait_s, limits)
        plan = self._planner.plan(request, settings)
        if plan.refusal:
            wait = plan.retry_after_s
            await asyncio.sleep(plan.latency_s)
            return await delivery.refuse(http, exchange, plan.refusal, wait, limits)
        usage = self._usage(request, plan)
        if self._tokens.rps:
            self._tokens.spend(usage.total_tokens)
            limits = self._limits()
        pace = settings.tokens_per_second
        pause_s = plan.latency_s + (usage.output_tokens / pace if pace else 0.0)
        heading = Heading(f"chatcmpl-{next(self._ids):08x}", int(time.time()), request.body.model)
        letter = Letter(
            request=request,
            plan=plan,
            heading=heading,
            usage=usage,
            headers=limits,
            pause_s=pause_s,
        )
        return await delivery.deliver(http, exchange, letter)

    def _over_limit(self, now: float) -> Refusal | None:
        """Return how a request is refused that comes too soon after others."""
        if not self._tokens.admit(now):
            return faults.TOKEN_LIMIT
        return None if self._limiter.admit(now) else faults.RATE_LIMIT

    def _limits(self) -> Mapping[str, str]:
        if not self.settings.limit_headers:
            return {}
        return {**self._limiter.headers(), **self._tokens.headers()}

    def _usage(self, request: Request, plan: Plan) -> Usage:
        counted = self.settings.count
        usage = self._meter.usage(request, plan.answer) if counted else meter.FIXED
        if plan.cache_write:
            fresh = usage.input_tokens - usage.cached_input_tokens
            return dataclasses.replace(usage, cache_write_tokens=fresh)
        return usage


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Make a request as aiohttp's server does, but for the size that it may have."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY
    )


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=delivery.JSON)


def _models(settings: Settings) -> object:
    """Return the list of models, as OpenAI has it: of scripts, the names with small numbers."""
    numbered = (f"{script}-{n}" for script in faults.SCRIPTS for n in range(1, _NUMBERS))
    listed = settings.models or dict.fromkeys((*faults.NAMES, *numbered), "")
    shape = {"object": "model", "created": 0, "owned_by": "batchd"}
    data = [{"id": n, **shape, "shutdown_date": day or None} for n, day in listed.items()]
    return {"object": "list", "data": data}


async def _serve(server: ModelServer) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        print(f"listening on {server.base_url}", flush=True)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    options = vars(_arguments().parse_args(arguments))
    port, log, bodies, folder = (
        options.pop(k) for k in ("port", "log", "log_bodies", "recordings")
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    try:
        recorded = recordings.load(folder) if folder else None
        server = ModelServer(
            Settings(**options), port=port, log=log, log_bodies=bodies, recorded=recorded
        )
        asyncio.run(_serve(server))
    except (BatchdError, ValueError, OSError) as exc:
        print(f"batchd.demo.server: {exc}", file=sys.stderr)
        return exc.exit_code if isinstance(exc, BatchdError) else 2
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="batchd.demo.server", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free one")
    add("--latency", dest="latency_s", type=float, metavar="S", help="before each answer")
    add("--tokens-per-second", type=float, metavar="N", help="delay answers by their length")
    add("--rps", type=float, metavar="N", help="requests a second, of all clients; 0: no limit")
    add("--burst", type=float, metavar="N", help="requests at once after a rest")
    add("--tps", type=float, metavar="N", help="tokens a second, of all clients; 0: no limit")
    add("--token-burst", type=float, metavar="N", help="tokens at once after a rest")
    add(
        "--retry-after",
        dest="retry_after_s",
        type=float,
        metavar="S",
        help="what a 429 says; 0: nothing",
    )
    add(
        "--no-limit-headers",
        dest="limit_headers",
        action="store_false",
        help="tell nothing of limits",
    )
    add("--faults", help="in front of every model's name: 503-2+latency-1")
    add("--share", type=float, metavar="PART", help="the part of all requests that --faults strike")
    add("--default", help="how models of unknown names answer: demo, steps-2")
    add("--api-key", help="refuse clients that send another")
    add("--no-count", dest="count", action="store_false", help="count no tokens: usage is fixed")
    add("--log", type=Path, metavar="FILE", help="a JSON line for each exchange")
    add("--log-bodies", action="store_true", help="log requests and answers in full")
    add("--recordings", type=Path, metavar="DIR", help="what `demo` replays, for the shipped ones")
    parser.set_defaults(**dataclasses.asdict(Settings()))
    return parser


if __name__ == "__main__":
    sys.exit(main())
