"""The stand-in model server: chat completions,
OpenAI's Responses and Anthropic's Messages on loopback.

    PYTHONPATH=tests python -m standin.server --port 8090 --log requests.jsonl

The model's name says how it answers: ``demo`` replays the recordings, the others are scripts and
faults, see ``scripts``. Beside ``/v1`` there are ``GET /log``, ``GET /totals`` and
``POST /control``, which takes any of ``ServerSettings``,
and ``"reset": true`` to forget all that was.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web

from batchd import decoders, tokens
from batchd.demo import recordings
from batchd.demo.recordings import Recording
from batchd.errors import BatchdError, NotPossibleError
from standin import dialects, simulated_provider
from standin.dialects import openai
from standin.exchanges import Exchange, Exchanges, Totals
from standin.faults import HttpRefusal
from standin.settings import ServerSettings, changed
from standin.simulated_provider import SimulatedProvider

#: The largest request body taken, in bytes.
_MAX_BODY = 64 << 20
#: Connections that may wait to be accepted: a thousand agents begin at once.
_BACKLOG = 4096


class ModelServer:
    """The server as an async context manager.

    Raises ``NotPossibleError`` where it cannot listen.
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        port: int = 0,
        log: Path | None = None,
        log_bodies: bool = False,
        recorded: Sequence[Recording] | None = None,
    ) -> None:
        """Take the settings, and the recordings that ``demo`` replays (None: the shipped ones)."""
        self.settings = settings or ServerSettings()
        self.log = Exchanges(log, bodies=log_bodies)
        self.base_url = ""
        if recorded is None:
            recorded = recordings.load(recordings.SHIPPED)
        self._provider = SimulatedProvider(self.settings, recorded, self.log)
        self._port = port

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
        self._provider.retune(self.settings)
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

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        self.log.close()

    def control(self, **changes: object) -> None:
        """Change settings while it runs; ``reset`` forgets all that was. Raises ``ValueError``."""
        reset = changes.pop("reset", False)
        self.settings = changed(self.settings, changes)
        self._provider.retune(self.settings)
        if reset:
            self._provider.reset()

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        path = http.path.removeprefix("/v1")
        if http.method == "POST" and path in dialects.BY_PATH:
            return await self._provider.answer(http, dialects.BY_PATH[path])
        match http.method, path:
            case "GET", "/models":
                if self.settings.down:
                    return simulated_provider.cut(http)
                anthropic = "anthropic-version" in http.headers
                dialect = dialects.BY_PATH["/messages" if anthropic else "/responses"]
                wanted = self.settings.api_key
                if wanted and dialect.key(http.headers) != wanted:
                    return _wrong(401, "Incorrect API key provided")
                return _json(self._provider.models(dialect))
            case "GET", "/log":
                return _json(self.requests)
            case "GET", "/totals":
                return _json(self.totals)
            case "POST", "/control":
                return await self._control(http)
        return _wrong(404, f"Invalid URL ({http.method} {http.path})")

    async def _control(self, http: web.BaseRequest) -> web.StreamResponse:
        try:
            self.control(**decoders.decode(await http.read(), dict[str, object]))
        except (ValueError, msgspec.MsgspecError) as exc:
            return _wrong(400, str(exc))
        return _json(self.settings)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """Make a request as aiohttp's server does, but for the size that it may have."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(
        message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY
    )


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type=simulated_provider.JSON)


def _wrong(status: int, message: str) -> web.Response:
    body = openai.error(HttpRefusal(status, message, openai.INVALID))
    return web.Response(status=status, body=body, content_type=simulated_provider.JSON)


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
            ServerSettings(**options), port=port, log=log, log_bodies=bodies, recorded=recorded
        )
        asyncio.run(_serve(server))
    except (BatchdError, ValueError, OSError) as exc:
        print(f"standin.server: {exc}", file=sys.stderr)
        return exc.exit_code if isinstance(exc, BatchdError) else 2
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="standin.server", description=" ".join(__doc__.split("\n\n")[0].split())
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free one")
    add("--latency", dest="latency_s", type=float, metavar="S", help="before each answer")
    add("--tokens-per-second", type=float, metavar="N", help="delay answers by their length")
    add("--rps", type=float, metavar="N", help="requests a second, of all clients; 0: no limit")
    add("--burst", type=float, metavar="N", help="requests at once after a rest")
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
        help="send no rate limit headers",
    )
    add("--api-key", help="refuse clients that send another")
    add("--no-count", dest="count", action="store_false", help="count no tokens: usage is fixed")
    add("--log", type=Path, metavar="FILE", help="a JSON line for each exchange")
    add("--log-bodies", action="store_true", help="log requests and answers in full")
    add("--recordings", type=Path, metavar="DIR", help="what `demo` replays, for the shipped ones")
    parser.set_defaults(**dataclasses.asdict(ServerSettings()))
    return parser


if __name__ == "__main__":
    sys.exit(main())
