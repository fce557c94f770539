"""The stand-in's log: every request, and what became of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from pathlib import Path

import msgspec

from batchd.records import Purpose, Tally, Usage
from standin.simulated_request import Bill, SimulatedRequest

#: Exchanges kept in memory; the totals count all.
_KEPT = 200_000


class Exchange(msgspec.Struct):
    """One request and its answer."""

    #: Seconds since the epoch.
    at: float
    #: Of the request body; equal hashes are the same question asked again.
    hash: str
    #: The wire dialect that it came in.
    dialect: str = ""
    model: str = ""
    #: None: the body was no request.
    purpose: Purpose | None = None
    #: How many answers the request holds.
    turn: int = 0
    #: The first user message, shortened.
    prompt: str = ""
    #: 0 while it waits, and for ever where no answer was begun.
    status: int = 0
    #: Whether the whole answer was handed to the client's connection.
    delivered: bool = False
    #: What the answer said it used.
    usage: Usage | None = None
    #: What of its input earlier requests of the account and model began with as well, where that is
    #: long enough to be cached: what a client that does all
    #: that the provider's rules allow reads from the cache.
    cacheable: int = 0
    #: The tier that was asked for, which serves it as well.
    tier_asked: str = ""
    #: Dollars; None where the model's name is no real one's.
    cost: float | None = None
    #: Opaque items that came back, and how many of them were left out.
    opaque: int = 0
    removed: int = 0
    #: From the request to the answer's last byte, or to the end of the connection.
    seconds: float | None = None
    #: The request's and the answer's body, where bodies are logged.
    request: str = ""
    answer: str = ""

    def settle(self, bill: Bill) -> None:
        """Take in what the answer says that it came to."""
        self.usage = bill.usage
        self.cacheable = bill.seen
        self.cost = bill.cost


class Totals(msgspec.Struct):
    """Sums over all exchanges since the start or the last reset."""

    requests: int = 0
    #: In flight now, and at most at one time.
    open: int = 0
    peak: int = 0
    #: Delivered answers to a request body that had been answered before.
    repeated: int = 0
    by_status: Counter[int] = msgspec.field(default_factory=Counter)
    #: Of the answers that were delivered and carried it.
    usage: Tally = Tally()
    cacheable: int = 0
    #: Of those that have a price.
    cost: float = 0.0
    #: Opaque items that were left out of delivered answers.
    removed: int = 0


class Exchanges:
    """The log in memory and, where asked for, in a file:
    one JSON line an exchange, written when it ends.
    """

    def __init__(self, file: Path | None = None, *, bodies: bool = False) -> None:
        self.kept: deque[Exchange] = deque(maxlen=_KEPT)
        self.totals = Totals()
        self._bodies = bodies
        self._answered: set[str] = set()
        self._file = file.open("ab") if file else None
        self._encode = msgspec.json.Encoder().encode

    def begin(self, dialect: str, request: SimulatedRequest | None, body: bytes) -> Exchange:
        """Log the arrival of a request, None where its body makes no sense."""
        digest = hashlib.blake2b(body, digest_size=8).hexdigest()
        exchange = Exchange(at=time.time(), hash=digest, dialect=dialect)
        if request is not None:
            exchange.model = request.model
            exchange.purpose = request.purpose
            exchange.turn = request.turn
            exchange.prompt = request.first_user[:120]
            exchange.tier_asked = request.tier
            exchange.opaque = request.opaque
            exchange.removed = request.removed
        if self._bodies:
            exchange.request = body.decode("utf-8", "replace")
        self.kept.append(exchange)
        self.totals.requests += 1
        self.totals.open += 1
        self.totals.peak = max(self.totals.peak, self.totals.open)
        return exchange

    def end(self, exchange: Exchange) -> None:
        """Log the end of an exchange, however it ended."""
        exchange.seconds = round(time.time() - exchange.at, 6)
        totals = self.totals
        totals.open -= 1
        totals.by_status[exchange.status] += 1
        if exchange.delivered and exchange.status == 200:  # HTTP's own number
            totals.repeated += exchange.hash in self._answered
            self._answered.add(exchange.hash)
            totals.removed += exchange.removed
            if exchange.usage is not None:
                totals.usage += Tally.of_call(exchange.usage, None)
                totals.cacheable += exchange.cacheable
                totals.cost += exchange.cost or 0.0
        if self._file:
            self._file.write(self._encode(exchange) + b"\n")
            self._file.flush()

    def reset(self) -> None:
        """Forget everything, what is in flight apart."""
        self.kept.clear()
        self._answered.clear()
        self.totals = Totals(open=self.totals.open, peak=self.totals.open)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
