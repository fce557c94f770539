"""How fast work gets done, measured over the last minutes."""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TypeAlias

from batchd.records import Parking
from batchd.store.queries import AnsweredCall
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow, WorkDone

#: How far back speed is measured: long enough for slow tasks,
#: short enough to show a change (seconds).
_WINDOW_S = 600.0
#: How far back the rates of providers are measured: their limits are of a minute (seconds).
_MINUTE_S = 60.0
#: Of the minute before the first look, it is known how much was answered by when,
#: in steps of so many seconds.
_STEP_S = 5
#: No speed is shown over a shorter time (seconds).
_MIN_SPAN_S = 5.0
#: Of the time, what counting tasks that wait may take at most: there may be 100,000.
_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was done lately."""

    #: Over how long it was measured (seconds).
    over_s: float
    tasks_a_minute: float
    tokens_a_minute: float
    usd_a_minute: float


@dataclass(frozen=True, slots=True)
class AnswerRate:
    """What a provider answered in a minute."""

    calls: float = 0.0
    tokens: float = 0.0


#: What a provider had answered: calls and tokens, by day and provider.
_Sums: TypeAlias = dict[tuple[str, str], tuple[int, int]]


class RateMeter:
    """Compares each look at the ledger with the ones before;
    the first, with what journals record of the last minute.
    """

    def __init__(self) -> None:
        #: Moments of the monotonic clock, and what was answered by then,
        #: of this day and the one before.
        self._samples: deque[tuple[float, _Sums]] = deque()

    def measure(self, reader: StoreReader) -> dict[str, AnswerRate]:
        """Return the rates of the last minute. Raises ``StoreError``."""
        now, wall = time.monotonic(), time.time()
        yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
        seen = {
            (row.day, row.provider): (row.calls, row.input_tokens + row.output_tokens)
            for row in reader.spend(("day", "provider"), since=yesterday)
        }
        if not self._samples:
            lately = reader.answered_since(wall - _MINUTE_S)
            for ago in _moments(lately, wall):
                self._samples.append((now - ago, _before(seen, lately, wall - ago)))
        self._samples.append((now, seen))
        while len(self._samples) > 2 and now - self._samples[1][0] > _MINUTE_S:  # first and last
            self._samples.popleft()
        began, before = self._samples[0]
        found: dict[str, AnswerRate] = {}
        for (day, provider), (calls, tokens) in seen.items():
            known = before.get((day, provider), (0, 0))
            rate = found.get(provider, AnswerRate())
            found[provider] = AnswerRate(
                rate.calls + (calls - known[0]) / (now - began) * 60,
                rate.tokens + (tokens - known[1]) / (now - began) * 60,
            )
        return found


def _moments(lately: Sequence[AnsweredCall], wall: float) -> list[float]:
    """Return how long ago samples are known of:
    from when the first of the calls began on, a minute ago at the earliest.
    """
    began = min((call.at - call.seconds for call in lately), default=0.0)
    first = min(_MINUTE_S, max(_MIN_SPAN_S, wall - began))
    return [first, *(float(ago) for ago in range(int(_MINUTE_S), 0, -_STEP_S) if ago < first)]


def _before(seen: _Sums, lately: Sequence[AnsweredCall], at: float) -> _Sums:
    """Return what had been answered by ``at``, given what is now and what came lately."""
    sums = dict(seen)
    for call in lately:
        if call.at >= at:
            day = dt.datetime.fromtimestamp(call.at, dt.UTC).date().isoformat()
            calls, tokens = sums.get((day, call.provider), (0, 0))
            sums[day, call.provider] = (calls - 1, tokens - call.tokens)
    return sums


class HeldMeter:
    """Counts the tasks that wait for something else than their turn:
    not more often than it is worth.
    """

    def __init__(self) -> None:
        self._due = 0.0
        self._known: tuple[Sequence[Parking], int] = ((), 0)

    def measure(
        self, reader: StoreReader, parked: Sequence[Parking], batches: Sequence[BatchRow]
    ) -> int:
        """Return how many there are. Raises ``StoreError``."""
        given_back = sum(row.parked for row in batches)
        if not parked:
            return given_back
        begun = time.monotonic()
        if parked != self._known[0] or begun >= self._due:
            self._known = parked, reader.held(parked)
            self._due = begun + (time.monotonic() - begun) / _SHARE
        return max(given_back, self._known[1])


class SpeedMeter:
    """Compares each look at the batches with the ones before."""

    def __init__(self) -> None:
        #: What of each batch was done when it was last seen.
        self._known: dict[str, WorkDone] = {}
        #: Moments of the monotonic clock, and all that was done by then.
        self._samples: deque[tuple[float, WorkDone]] = deque()

    def measure(self, reader: StoreReader, batches: Sequence[BatchRow]) -> Speed | None:
        """Return the speed up to now; None until there is something to measure.

        Raises ``StoreError``.

        ``batches``: all that have not ended, and some that have; the same kinds each time.
        """
        now = time.monotonic()
        seen = {row.batch.name: _done(row) for row in batches}
        if self._samples:
            added = sum((d - self._known.get(n, WorkDone()) for n, d in seen.items()), WorkDone())
            total = self._samples[-1][1] + added
        else:
            self._samples.append(_history(reader, batches, now))
            total = WorkDone()
        self._known = seen
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:  # first and last
            self._samples.popleft()
        began, before = self._samples[0]
        if now - began < _MIN_SPAN_S:
            return None
        tasks, tokens, usd = (n / (now - began) * 60 for n in astuple(total - before))
        return Speed(
            over_s=now - began, tasks_a_minute=tasks, tokens_a_minute=tokens, usd_a_minute=usd
        )


def _history(
    reader: StoreReader, batches: Sequence[BatchRow], now: float
) -> tuple[float, WorkDone]:
    """Return the moment at which the window begins,
    and minus what was done since then, by tasks at work too.
    """
    wall = time.time()
    oldest = min((row.batch.received_at for row in batches if not row.published_at), default=wall)
    window = min(_WINDOW_S, max(0.0, wall - oldest))
    return now - window, WorkDone() - reader.done_since(wall - window)


def _done(row: BatchRow) -> WorkDone:
    return WorkDone(row.finished, row.input_tokens + row.output_tokens, row.cost_usd or 0.0)
