"""One exchange with a provider: the request's body is composed and sent, the answer is read, its
headers and the rate limits in them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import msgspec

from batchd.llm import failures
from batchd.llm.dialect import Dialect, ModelRequest, ModelTarget, without
from batchd.llm.failures import CallPlace
from batchd.records import Endpoint, Failure, FailureKind, Metered, ModelSetup, RateLimit, options
from batchd.records.models import valid_throughout
from batchd.version import __version__

_NOTHING: Mapping[str, Any] = {}


def fields(
    dialect: Dialect,
    setup: ModelSetup,
    target: ModelTarget,
    request: ModelRequest,
    secret: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """Return the fields of a request's body.

    ``secret``: those of the endpoint's own, which are never stored.
    """
    body = dialect.encode(setup, target, request)
    options.lay(body, setup.options, setup.api)
    body.update(setup.extra_body)
    body.update(secret)
    dialect.settled(body)
    return without(body, request.spared) if request.spared else body


def encoded(body: dict[str, Any]) -> bytes:
    """Return the body in JSON: the same messages give the same bytes in every call,
    so that the provider's prompt cache hits.

    All of it is encoded each time: 10 µs for 14 KB, far below the cost of keeping pieces.
    """
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        return msgspec.json.encode(valid_throughout(body))


async def handed_over(body: list[bytes]) -> AsyncIterator[bytes]:
    """Yield a body, which is not kept any longer then: a thousand calls may wait for minutes."""
    yield body.pop()


#: By what a limit is of, where its three headers are: OpenAI's names, which most have taken over,
#: and anthropic's. Of these, what went comes back bit by bit.
_GRADUAL: tuple[tuple[Metered, str], ...] = (
    ("requests", "x-ratelimit-{}-requests"),
    ("tokens", "x-ratelimit-{}-tokens"),
    ("requests", "anthropic-ratelimit-requests-{}"),
    ("tokens", "anthropic-ratelimit-tokens-{}"),
)
#: Of whose tokens what is read from the cache uses none up.
_SPARES_CACHE = "anthropic-"
#: Of these, all of it is back at once, when a window ends.
_WINDOWS = ("ratelimit-{}", "x-ratelimit-{}")
_FIELDS = ("limit", "remaining", "reset")
#: Their names written out, as this is read with every answer.
_NAMES: tuple[tuple[Metered, bool, tuple[str, ...]], ...] = (
    *((of, False, tuple(map(name.format, _FIELDS))) for of, name in _GRADUAL),
    *(("requests", True, tuple(map(name.format, _FIELDS))) for name in _WINDOWS),
)
#: ``100, 100;w=60`` is a limit of 100.
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)")


def rate_limits(headers: Mapping[str, str]) -> tuple[RateLimit, ...]:
    """Return the limits that an answer's headers give in full; most give none."""
    if not any("ratelimit" in name for name in headers):
        return ()
    return tuple(_rate_limits(headers))


def _rate_limits(headers: Mapping[str, str]) -> Iterator[RateLimit]:
    for of, window, (limit, remaining, reset) in _NAMES:
        most, left = _number(headers.get(limit)), _number(headers.get(remaining))
        wait = failures.seconds(headers.get(reset))
        if most and left is not None and wait is not None:
            yield RateLimit(
                of=of,
                limit=most,
                remaining=left,
                reset_s=wait,
                window=window,
                spares_cache=of == "tokens" and limit.startswith(_SPARES_CACHE),
            )


def _number(value: str | None) -> float | None:
    found = _NUMBER.match(value or "")
    number = float(found[1]) if found else math.inf
    return number if math.isfinite(number) else None


#: A host that does not take a connection by then cannot be reached.
_CONNECT_S = 15.0
#: Bytes of a body that are read: no answer is a tenth as long,
#: and rubbish without end would fill the memory.
MAX_BODY_BYTES = 16 << 20
#: Idle connections are closed sooner than the five seconds after which common servers do it: a
#: request that crosses their close on the way would be lost, and perhaps paid.
_IDLE_S = 4.0
#: What a server says of that (RFC 2068, 19.7.1.1; no later standard has it, and most servers that
#: say it mean it so); how much sooner the connection is closed here;
#: and after how long in any case: a firewall on the way may forget it.
_SAID = re.compile(r"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,6})\b", re.IGNORECASE)
_SOONER_S = 1.0
_LONGEST_IDLE_S = 55.0
#: A body up to this (bytes) is kept while its call waits,
#: which costs less: a thousand of them come to 16 MB.
_MAX_KEPT_BODY_BYTES = 1 << 14
_HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"batchd/{__version__}",
}
#: What came over the connection was no HTTP, or not compressed as it said.
_NOT_HTTP = (aiohttp.ClientResponseError, httpx2.DecodingError)
#: What goes wrong before there is a connection.
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, httpx2.UnsupportedProtocol)


@cache
def tls() -> SSLContext:
    """Return the certificates to trust, read once.

    Call it before forking: they take 20 ms and memory.
    """
    return httpx2.create_ssl_context()


@cache
def transport() -> type[httpx2.AsyncClient]:
    """Return the SDK's own client for HTTP over aiohttp.

    Call it before forking: the SDK takes 0.2 s and 11 MB, most of it for types that no call needs.
    """
    import openai

    return openai.DefaultAioHttpClient


def client(
    endpoint: Endpoint, key: Mapping[str, str], idle_s: float | None = None
) -> httpx2.AsyncClient:
    """Return the SDK's own client for HTTP, without what the SDK puts around each call:
    that costs as much again.

    ``key``: the headers that hold it. ``idle_s``: how long a connection may stay idle, where the
    server has said so. Raises ``ValueError`` for an address that holds a user name.
    """
    if urlsplit(endpoint.base_url).username:
        raise ValueError(
            "it holds a user name: put a key into api_key_env, and anything else into headers"
        )
    headers = httpx2.Headers({**_HEADERS, **key})
    headers.update(endpoint.headers)
    return transport()(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=_CONNECT_S),
        limits=httpx2.Limits(
            # Without a number, aiohttp stops at 100.
            max_connections=max(1000, endpoint.max_concurrent),
            keepalive_expiry=_IDLE_S if idle_s is None else idle_s,
        ),
        verify=tls(),
        # A redirected POST would lose its body or its key on the way: it is reported, not followed.
        follow_redirects=False,
    )


def idle_s(headers: Mapping[str, str]) -> float | None:
    """Return how long a connection may stay idle, in seconds,
    by what its server says (``Keep-Alive: timeout=65``).

    None: it says nothing. That is sooner than the server closes it,
    by a second or by half of the time.
    """
    said = _SAID.search(headers.get("keep-alive", ""))
    if said is None:
        return None
    seconds = float(said[1])
    return min(max(seconds - _SOONER_S, seconds / 2), _LONGEST_IDLE_S)


async def exchanged(
    http: httpx2.AsyncClient, url: httpx2.URL, place: CallPlace, body: list[bytes], timeout_s: float
) -> tuple[httpx2.Response, bytes] | Failure:
    """Return what a request brings, and its whole body.

    ``body`` holds the one to send, and is empty once it is sent.
    """
    size = len(body[0])
    headers = None if size <= _MAX_KEPT_BODY_BYTES else {"Content-Length": str(size)}
    try:
        # Around all of it: the client's own timeouts begin again with every byte.
        async with asyncio.timeout(timeout_s):
            content = handed_over(body) if headers else body.pop()
            request = http.build_request("POST", url, headers=headers, content=content)
            del content
            response = await http.send(request, stream=True)
            async with contextlib.aclosing(response):
                return response, await _content(response)
    except TimeoutError:
        return place.failure(FailureKind.TIMEOUT, says=f"did not answer within {timeout_s:g} s")
    except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
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
    except ValueError as error:
        return place.failure(
            FailureKind.BAD_REQUEST, str(error), says="cannot be asked like this", sent=False
        )


async def _content(response: httpx2.Response) -> bytes:
    """Return a response's body. Raises ``httpx2.HTTPError``, also for one that is too long."""
    parts, left = [], MAX_BODY_BYTES
    # Mostly there is nothing to unpack, and to ask for it costs as much as to read.
    packed = "content-encoding" in response.headers
    async for part in response.aiter_bytes() if packed else response.aiter_raw():
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise httpx2.DecodingError(f"more than {MAX_BODY_BYTES >> 20} MB without an end")
    return b"".join(parts)
