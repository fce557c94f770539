"""``ModelClient``: the way to the providers, one connection pool each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from ssl import SSLContext
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from msgspec.structs import replace

from batchd import __version__
from batchd.llm import composing, ratelimits, refusals
from batchd.llm.bodies import UnreadableError
from batchd.llm.dialect import Dialect
from batchd.llm.dialects import DIALECTS
from batchd.llm.failures import Place, http_failure
from batchd.llm.request import Request, Target
from batchd.masking import Masker
from batchd.records import Answer, Api, Endpoint, Failure, FailureKind, ModelSetup, RateLimit
from batchd.records.unicode import line as one_line

#: A host that does not take a connection by then cannot be reached.
CONNECT_S = 15.0
#: Idle connections are closed sooner than the five seconds after which common servers do it: a
#: request that crosses their close on the way would be lost, and perhaps paid.
_KEEPALIVE_S = 4.0
#: Bytes of a body that are read: no answer is a tenth as long, and rubbish without end would fill the memory.
MOST_BYTES = 16 << 20
#: An answer or a request longer than this (bytes) takes so long to read, or to count, that a thread does it.
_LONG = 1 << 17
#: A body up to this (bytes) is kept while its call waits, which costs less: a thousand of them come to 16 MB.
_LIGHT = 1 << 14
#: What a request is refused with that asks for something the model does not do.
_REFUSED = frozenset({400, 404, 422})
_REPAIRABLE = frozenset({FailureKind.BAD_REQUEST, FailureKind.UNFIT})
_HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"batchd/{__version__}",
}
_NO_LIMITS: Mapping[str, tuple[RateLimit, ...]] = {}
_NO_LESSONS: Mapping[str, tuple[str, ...]] = {}
_NOTHING: frozenset[str] = frozenset()
#: What came over the connection was no HTTP, or not compressed as it said.
_NOT_HTTP = (aiohttp.ClientResponseError, httpx2.DecodingError)
#: What goes wrong before there is a connection.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.UnsupportedProtocol)


@dataclass(slots=True)
class _Line:
    """One provider's connections in one dialect, and how many calls are on them."""

    endpoint: Endpoint
    dialect: Dialect
    http: httpx2.AsyncClient
    #: Where each call goes.
    url: httpx2.URL
    #: As the provider named it with its last answer; empty: it has not.
    account: str = ""
    calls: int = 0
    retired: bool = False


class ModelClient:
    """Makes model calls. One for each process, on one event loop, shared by all that it runs."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Take the endpoints by provider name; each is connected to when it is first needed."""
        self._endpoints = dict(endpoints)
        self._masker = Masker(_secrets(endpoints))
        #: By provider and dialect.
        self._lines: dict[tuple[str, str], _Line] = {}
        self._retired: list[_Line] = []
        self._limits: dict[str, tuple[RateLimit, ...]] = {}
        #: By model: what it is known to refuse; and what was learned since somebody asked.
        self._known: dict[str, frozenset[str]] = {}
        self._lessons: dict[str, tuple[str, ...]] = {}

    def limits(self) -> Mapping[str, tuple[RateLimit, ...]]:
        """Return the limits that providers, by name, sent with their last answers; each is returned once."""
        if not self._limits:
            return _NO_LIMITS
        heard, self._limits = self._limits, {}
        return heard

    def know(self, refused: Mapping[str, Collection[str]]) -> None:
        """Take what models, by name, refuse as all that is known of them."""
        for name, lessons in refused.items():
            self._known[name] = frozenset(lessons)

    def lessons(self) -> Mapping[str, tuple[str, ...]]:
        """Return what models, by name, were seen to refuse and to do without; each is returned once."""
        if not self._lessons:
            return _NO_LESSONS
        learned, self._lessons = self._lessons, {}
        return learned

    async def call(self, setup: ModelSetup, request: Request, timeout_s: float) -> Answer | Failure:
        """Make one call, once, and return what came of it.

        Raises nothing for what a provider or the way to it does. Cancelling closes the connection.
        """
        endpoint = self._endpoints.get(setup.provider)
        if endpoint is None:
            return Failure(
                kind=FailureKind.AUTH,
                message=f"{setup.name}: the provider {setup.provider!r} is not configured, or has no key",
            )
        place = Place(setup, endpoint, self._masker, DIALECTS[setup.api].what)
        if timeout_s <= 0:
            return place.failure(
                FailureKind.TIMEOUT, says="was not asked: no time was left", sent=False
            )
        try:
            line = self._line(setup.provider, setup.api, endpoint)
        except (httpx2.InvalidURL, ValueError) as error:
            return place.failure(
                FailureKind.BAD_REQUEST, str(error), says="has a bad base_url", sent=False
            )
        line.calls += 1
        try:
            return await self._ask(line, place, request, timeout_s)
        finally:
            line.calls -= 1
            if self._retired:
                await self._close_retired()

    def retune(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Use these endpoints from the next call on; calls under way end on the old ones."""
        self._endpoints = dict(endpoints)
        self._masker.learn(_secrets(endpoints))
        self._known.clear()
        for key, line in list(self._lines.items()):
            if line.endpoint != endpoints.get(key[0]):
                self._retired.append(self._lines.pop(key))

    async def aclose(self) -> None:
        """Close all connections; calls under way fail."""
        lines = [*self._lines.values(), *self._retired]
        self._lines, self._retired = {}, []
        for line in lines:
            await line.http.aclose()

    async def _ask(
        self, line: _Line, place: Place, request: Request, timeout_s: float
    ) -> Answer | Failure:
        setup = place.setup
        known = self._known.get(setup.name, _NOTHING)
        learning = (request.spared | refusals.unspoken(setup, line.dialect)) - known
        request = replace(request, spared=request.spared | known) if known else request
        target = Target.of(setup, place.endpoint_host, line.account)
        sent = composing.fields(line.dialect, setup, target, request, place.endpoint.body)
        body = [composing.encoded(sent)]
        size = len(body[0])
        begun = time.monotonic()
        came = await _exchanged(line, place, body, timeout_s)
        if isinstance(came, Failure):
            return came
        response, content = came
        if limits := ratelimits.read(response.headers):
            self._limits[setup.provider] = limits
        if not response.is_success:
            failure = http_failure(place, response.status_code, response.headers, content)
            if failure.kind in _REPAIRABLE and response.status_code in _REFUSED:
                return refusals.repaired(failure, line.dialect, request, sent, content)
            return failure
        if line.dialect.account:
            line.account = _account(line.dialect, response.headers) or line.account
            target = Target.of(setup, target.host, line.account)
        seconds = time.monotonic() - begun
        decode = partial(line.dialect.decode, place, target, content, request, seconds)
        if len(content) > _LONG or (size > _LONG and line.dialect.counted not in content):
            outcome = await asyncio.to_thread(_read, place, decode)
        else:
            outcome = _read(place, decode)
        if learning and isinstance(outcome, Answer):
            self._learned(setup.name, learning)
        return outcome

    def _learned(self, model: str, lessons: frozenset[str]) -> None:
        """Note what a model does without, as it has answered."""
        known = self._known.get(model, _NOTHING)
        if fresh := lessons - known:
            self._known[model] = known | fresh
            self._lessons[model] = (*self._lessons.get(model, ()), *sorted(fresh))

    def _line(self, name: str, api: Api, endpoint: Endpoint) -> _Line:
        line = self._lines.get((name, api))
        if line is None:
            dialect = DIALECTS[api]
            url = httpx2.URL(endpoint.address(dialect.path))
            http = _http(endpoint, dialect.headers(endpoint.api_key))
            line = self._lines[name, api] = _Line(endpoint, dialect, http, url)
        return line

    async def _close_retired(self) -> None:
        idle = [line for line in self._retired if not line.calls]
        self._retired = [line for line in self._retired if line.calls]
        for line in idle:
            await line.http.aclose()


def _secrets(endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    return (secret for endpoint in endpoints.values() for secret in endpoint.secrets())


@cache
def tls() -> SSLContext:
    """Return the certificates to trust, read once. Call it before forking: they take 20 ms and memory."""
    return httpx2.create_ssl_context()


def _account(dialect: Dialect, headers: Mapping[str, str]) -> str:
    """Return the account as an answer's headers name it; empty: they do not."""
    return " ".join(one_line(headers[name], 200) for name in dialect.account if name in headers)


def _http(endpoint: Endpoint, key: Mapping[str, str]) -> httpx2.AsyncClient:
    """Return the SDK's own client for HTTP, without what the SDK puts around each call: that costs as much again."""
    if urlsplit(endpoint.base_url).username:
        raise ValueError(
            "it holds a user name: a key goes into api_key_env, other ways into headers"
        )
    headers = httpx2.Headers({**_HEADERS, **key})
    headers.update(endpoint.headers)
    return openai.DefaultAioHttpClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=CONNECT_S),
        limits=httpx2.Limits(
            # Without a number, aiohttp stops at 100.
            max_connections=max(1000, endpoint.max_concurrent),
            keepalive_expiry=_KEEPALIVE_S,
        ),
        verify=tls(),
        # A redirected POST would lose its body or its key on the way: it is reported, not followed.
        follow_redirects=False,
    )


async def _exchanged(
    line: _Line, place: Place, body: list[bytes], timeout_s: float
) -> tuple[httpx2.Response, bytes] | Failure:
    """Return what a request brings, and its whole body. ``body`` holds the one to send, and is empty once it is sent."""
    size = len(body[0])
    headers = None if size <= _LIGHT else {"Content-Length": str(size)}
    try:
        # Around all of it: the client's own timeouts begin again with every byte.
        async with asyncio.timeout(timeout_s):
            content = composing.handed_over(body) if headers else body.pop()
            request = line.http.build_request("POST", line.url, headers=headers, content=content)
            del content
            response = await line.http.send(request, stream=True)
            async with contextlib.aclosing(response):
                return response, await _content(response)
    except TimeoutError:
        return place.failure(FailureKind.TIMEOUT, says=f"did not answer within {timeout_s:g} s")
    except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
        return _connection_failure(place, error)
    except ValueError as error:
        return place.failure(
            FailureKind.BAD_REQUEST, str(error), says="cannot be asked like this", sent=False
        )


async def _content(response: httpx2.Response) -> bytes:
    """Return a response's body. Raises ``httpx2.HTTPError``, also for one that is too long."""
    parts, left = [], MOST_BYTES
    # Mostly there is nothing to unpack, and to ask for it costs as much as to read.
    packed = "content-encoding" in response.headers
    async for part in response.aiter_bytes() if packed else response.aiter_raw():
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise httpx2.DecodingError(f"more than {MOST_BYTES >> 20} MB without an end")
    return b"".join(parts)


def _connection_failure(place: Place, error: Exception) -> Failure:
    """Return what broke the way: the first cause says it."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    detail = str(causes[-1]) or type(causes[-1]).__name__
    if any(isinstance(c, _NOT_HTTP) for c in causes):
        return place.failure(FailureKind.BAD_ANSWER, detail)
    if any(isinstance(c, _UNSENT) for c in causes):
        return place.failure(FailureKind.CONNECTION, detail, sent=False)
    says = "closed the connection before the answer was whole"
    return place.failure(FailureKind.CONNECTION, detail, says=says)


def _read(place: Place, decode: Callable[[], Answer | Failure]) -> Answer | Failure:
    """Return what the body of a response with status 200 says."""
    try:
        return decode()
    except UnreadableError as error:
        return place.unusable(str(error))
    except RecursionError:
        return place.unusable("it is nested too deep")
