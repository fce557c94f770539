"""The wire dialects that the stand-in speaks: one module each, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from standin.dialects import chat, messages, responses
from standin.faults import HttpRefusal
from standin.limiter import Limit
from standin.simulated_request import Caller, InvalidRequestError, SimulatedRequest


class ServedDialect(Protocol):
    """A wire dialect: what its module holds."""

    #: What the log calls it.
    name: str
    #: The body of an answer that says nothing.
    nothing: bytes
    #: What it says of faults, by their names.
    words: Mapping[str, HttpRefusal]

    def parse(self, data: bytes, caller: Caller) -> SimulatedRequest:
        """Return the request in a body.

        Raises ``InvalidRequestError`` where a provider would refuse it.
        """

    def invalid(self, wrong: InvalidRequestError) -> HttpRefusal:
        """Return what such a request is refused with."""

    def error(self, wrong: HttpRefusal, request_id: str) -> bytes:
        """Return a refusal's body."""

    def key(self, headers: Mapping[str, str]) -> str:
        """Return the key that a request was sent with."""

    def headers(self, limits: Iterable[Limit], account: str, request_id: str) -> dict[str, str]:
        """Return what goes with every answer."""

    def models(self, listed: Mapping[str, str]) -> object:
        """Return the list of models, from their names and the days
        on which they end, empty where none is known.
        """


#: By the path below ``/v1``.
BY_PATH: Mapping[str, ServedDialect] = {
    "/chat/completions": chat,
    "/responses": responses,
    "/messages": messages,
}
