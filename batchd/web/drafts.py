"""Orders that wait for a yes: each is given once, by the browser that asked, within two minutes."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from batchd.errors import UsageError
from batchd.web.orders import WebOrder

#: How long a question waits for its answer (seconds).
_WAITS_S = 120.0
#: Questions that wait at once; the oldest goes first.
_MAX_DRAFTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """An order, and who asked for it."""

    order: WebOrder
    session: str
    until: float


class Drafts:
    """Keeps orders until they are confirmed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By their tickets, oldest first.
        self._drafts: dict[str, _Draft] = {}

    def keep(self, order: WebOrder, session: str) -> str:
        """Keep an order; return the ticket that confirms it, once."""
        while len(self._drafts) >= _MAX_DRAFTS:
            del self._drafts[next(iter(self._drafts))]
        ticket = secrets.token_urlsafe(24)
        until = self._clock() + _WAITS_S
        self._drafts[ticket] = _Draft(order=order, session=session, until=until)
        return ticket

    def take(self, ticket: str, session: str) -> WebOrder:
        """Return the order of a ticket, which is used up by that. Raises ``UsageError``."""
        draft = self._drafts.pop(ticket, None)
        if (
            draft is None
            or not hmac.compare_digest(draft.session.encode(), session.encode())
            or self._clock() > draft.until
        ):
            raise UsageError(
                "this question is answered already, or older than two minutes: ask again"
            )
        return draft.order
