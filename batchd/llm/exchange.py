"""One exchange over HTTP: a request, the whole of what comes back,
and how long its connection is kept for the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from ssl import SSLContext
from urllib.parse import urlsplit

import aiohttp
import httpx2

from batchd import __version__
from batchd.llm import composing
from batchd.llm.failures import CallPlace
from batchd.records import Endpoint, Failure, FailureKind

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
    """Return the SDK's own client for HTTP over aiohttp. Call it before forking.

    It is loaded without the SDK around it, whose types no call needs: they take as long as all
    else that a worker loads, and 22 MB.
    """
    sdk = find_spec("openai")
    places = [f"{folder}/_vendor" for folder in (sdk and sdk.submodule_search_locations) or ()]
    found = PathFinder.find_spec("httpx_aiohttp", places)
    if found is None or found.loader is None:
        import openai  # a version that has it elsewhere: all of it, then

        return openai.DefaultAioHttpClient
    module = sys.modules[found.name] = module_from_spec(found)
    found.loader.exec_module(module)
    made: type[httpx2.AsyncClient] = module.Httpx2AiohttpClient
    return made


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
            content = composing.handed_over(body) if headers else body.pop()
            request = http.build_request("POST", url, headers=headers, content=content)
            del content
            response = await http.send(request, stream=True)
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
    parts, left = [], MAX_BODY_BYTES
    # Mostly there is nothing to unpack, and to ask for it costs as much as to read.
    packed = "content-encoding" in response.headers
    async for part in response.aiter_bytes() if packed else response.aiter_raw():
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise httpx2.DecodingError(f"more than {MAX_BODY_BYTES >> 20} MB without an end")
    return b"".join(parts)


def _connection_failure(place: CallPlace, error: Exception) -> Failure:
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
