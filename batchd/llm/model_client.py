"""The model client: one call to a provider becomes an ``Answer`` or a classified ``Failure``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import httpx2
from msgspec.structs import replace

from batchd.llm import chat, dialect, exchange, messages, responses
from batchd.llm.answer import UnreadableError
from batchd.llm.dialect import Dialect, ModelRequest, ModelTarget
from batchd.llm.failures import CallPlace, http_failure
from batchd.masking import Masker
from batchd.records import Answer, Api, Endpoint, Failure, FailureKind, ModelSetup, RateLimit
from batchd.records.models import line as one_line

DIALECTS: Mapping[Api, Dialect] = {
    "chat": chat.DIALECT,
    "responses": responses.DIALECT,
    "messages": messages.DIALECT,
}


#: An answer or a request longer than this (bytes) takes so long to read,
#: or to count, that a thread does it.
_THREAD_FROM_BYTES = 1 << 17
#: What is longer no provider takes (Anthropic's own limit), and many of them would fill the memory.
_MAX_REQUEST_BYTES = 32 << 20
#: What a request is refused with that asks for something the model does not do.
_REFUSED = frozenset({400, 404, 422})
_REPAIRABLE = frozenset({FailureKind.BAD_REQUEST, FailureKind.UNFIT})
_NOTHING: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Line:
    """One provider's connections in one dialect, and how many calls are on them."""

    endpoint: Endpoint
    dialect: Dialect
    http: httpx2.AsyncClient
    #: Where each call goes.
    url: httpx2.URL
    #: How long the server has said that a connection may stay idle, in seconds; None: it has not.
    idle_s: float | None = None
    #: As the provider named it with its last answer; empty: it has not.
    account: str = ""
    calls: int = 0

    @classmethod
    def to(
        cls,
        endpoint: Endpoint,
        dialect: Dialect,
        idle_s: float | None = None,
        account: str = "",
    ) -> _Line:
        """Return a way to a provider, without connections yet.

        Raises ``ValueError`` for an address that cannot be one.
        """
        url = httpx2.URL(endpoint.address(dialect.path))
        http = exchange.client(endpoint, dialect.headers(endpoint.api_key), idle_s)
        return cls(endpoint, dialect, http, url, idle_s, account)


class ModelClient:
    """The client of models. One for each process, on one event loop, shared by all that it runs."""

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
        """Return the limits that providers, by name, sent with their last answers;
        each is returned once.
        """
        heard, self._limits = self._limits, {}
        return heard

    def know(self, refused: Mapping[str, Collection[str]]) -> None:
        """Take what models, by name, refuse as all that is known of them."""
        for name, lessons in refused.items():
            self._known[name] = frozenset(lessons)

    def lessons(self) -> Mapping[str, tuple[str, ...]]:
        """Return what models, by name, were seen to refuse and to do without;
        each is returned once.
        """
        learned, self._lessons = self._lessons, {}
        return learned

    async def call(
        self, setup: ModelSetup, request: ModelRequest, timeout_s: float
    ) -> Answer | Failure:
        """Make one call, once, and return what came of it.

        Raises nothing for what a provider or the way to it does. Cancelling closes the connection.
        """
        endpoint = self._endpoints.get(setup.provider)
        if endpoint is None:
            return Failure(
                kind=FailureKind.AUTH,
                message=f"{setup.name}: the provider {setup.provider!r} is not configured, or has no key",
            )
        place = CallPlace(setup, endpoint, self._masker, DIALECTS[setup.api].what)
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
        self, line: _Line, place: CallPlace, request: ModelRequest, timeout_s: float
    ) -> Answer | Failure:
        setup = place.setup
        known = self._known.get(setup.name, _NOTHING)
        learning = (request.spared | dialect.unspoken(setup, line.dialect)) - known
        request = replace(request, spared=request.spared | known) if known else request
        length = sum(m.length + (m.replay.size if m.replay else 0) for m in request.messages)
        if length > _MAX_REQUEST_BYTES:
            says = f"was not asked: the conversation has {length >> 20} MB, and a request at most {_MAX_REQUEST_BYTES >> 20} MB"
            return place.failure(FailureKind.CONTEXT_OVERFLOW, says=says, sent=False)
        target = ModelTarget.of(setup, place.endpoint_host, line.account)
        sent = exchange.fields(line.dialect, setup, target, request, place.endpoint.body)
        body = [exchange.encoded(sent)]
        size = len(body[0])
        begun = time.monotonic()
        came = await exchange.exchanged(line.http, line.url, place, body, timeout_s)
        if isinstance(came, Failure):
            return came
        response, content = came
        if (idle_s := exchange.idle_s(response.headers)) is not None:
            self._learn_idle(line, idle_s)
        if limits := exchange.rate_limits(response.headers):
            self._limits[setup.provider] = limits
        if not response.is_success:
            failure = http_failure(place, response.status_code, response.headers, content)
            if failure.kind in _REPAIRABLE and response.status_code in _REFUSED:
                return dialect.repaired(failure, line.dialect, request, sent, content)
            return failure
        if line.dialect.account:
            said = (response.headers.get(name, "") for name in line.dialect.account)
            account = " ".join(one_line(each, 200) for each in said if each)
            line.account = account or line.account
            target = ModelTarget.of(setup, target.host, line.account)
        seconds = time.monotonic() - begun
        decode = partial(line.dialect.decode, place, target, content, request, seconds)
        if len(content) > _THREAD_FROM_BYTES or (
            size > _THREAD_FROM_BYTES and line.dialect.counted not in content
        ):
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
            line = self._lines[name, api] = _Line.to(endpoint, DIALECTS[api])
        return line

    def _learn_idle(self, line: _Line, idle_s: float) -> None:
        """Keep a server's idle connections as long as it says,
        from the next call on; of several numbers the lowest counts.
        """
        if line.idle_s is not None and idle_s >= line.idle_s:
            return
        for key, current in self._lines.items():
            if current is line:
                self._lines[key] = _Line.to(line.endpoint, line.dialect, idle_s, line.account)
                self._retired.append(line)
                return

    async def _close_retired(self) -> None:
        idle = [line for line in self._retired if not line.calls]
        self._retired = [line for line in self._retired if line.calls]
        for line in idle:
            await line.http.aclose()


def _secrets(endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    return (secret for endpoint in endpoints.values() for secret in endpoint.secrets())


def _read(place: CallPlace, decode: Callable[[], Answer | Failure]) -> Answer | Failure:
    """Return what the body of a response with status 200 says."""
    try:
        return decode()
    except UnreadableError as error:
        return place.unusable(str(error))
    except RecursionError:
        return place.unusable("it is nested too deep")
