"""How fast work gets done, measured over the last minutes."""

from __future__ import annotations

import datetime as dt
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from batchd.store.reader import Reader
from batchd.store.rows import BatchRow, Done

#: How far back speed is measured: long enough for slow tasks, short enough to show a change (seconds).
_WINDOW_S = 600.0
#: How far back the rates of providers are measured: their limits are of a minute (seconds).
_MINUTE_S = 60.0
#: No speed is told of a shorter time (seconds).
_SHORTEST_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was done lately."""

    #: Over how long it was measured (seconds).
    over_s: float
    tasks_a_minute: float
    tokens_a_minute: float
    usd_a_minute: float


@dataclass(frozen=True, slots=True)
class Rate:
    """What a provider answered in a minute."""

    calls: float = 0.0
    tokens: float = 0.0


class RateMeter:
    """Compares each look at the ledger with the ones before."""

    def __init__(self) -> None:
        #: Moments of the monotonic clock, and what each provider had answered by then, of this day and the one before.
        self._samples: deque[tuple[float, dict[tuple[str, str], tuple[int, int]]]] = deque()

    def measure(self, reader: Reader) -> dict[str, Rate]:
        """Return the rates of the last minute; none until there is something to measure. Raises ``StoreError``."""
        now = time.monotonic()
        yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
        seen = {
            (row.day, row.provider): (row.calls, row.input_tokens + row.output_tokens)
            for row in reader.spend(("day", "provider"), since=yesterday)
        }
        self._samples.append((now, seen))
        while len(self._samples) > 2 and now - self._samples[1][0] > _MINUTE_S:  # noqa: PLR2004 (first and last)
            self._samples.popleft()
        began, before = self._samples[0]
        if now - began < _SHORTEST_S:
            return {}
        found: dict[str, Rate] = {}
        for (day, provider), (calls, tokens) in seen.items():
            known = before.get((day, provider), (0, 0))
            rate = found.get(provider, Rate())
            found[provider] = Rate(
                rate.calls + (calls - known[0]) / (now - began) * 60,
                rate.tokens + (tokens - known[1]) / (now - began) * 60,
            )
        return found


class SpeedMeter:
    """Compares each look at the batches with the ones before."""

    def __init__(self) -> None:
        #: What of each batch was done when it was last seen.
        self._known: dict[str, Done] = {}
        #: Moments of the monotonic clock, and all that was done by then.
        self._samples: deque[tuple[float, Done]] = deque()

    def measure(self, reader: Reader, batches: Sequence[BatchRow]) -> Speed | None:
        """Return the speed up to now; None until there is something to measure. Raises ``StoreError``.

        ``batches``: all that have not ended, and some that have; the same kinds each time.
        """
        now = time.monotonic()
        seen = {row.batch.name: _done(row) for row in batches}
        if self._samples:
            added = sum((d - self._known.get(n, Done()) for n, d in seen.items()), Done())
            total = self._samples[-1][1] + added
        else:
            self._samples.append(_history(reader, batches, now))
            total = Done()
        self._known = seen
        self._samples.append((now, total))
        while len(self._samples) > 2 and now - self._samples[1][0] > _WINDOW_S:  # noqa: PLR2004 (first and last)
            self._samples.popleft()
        began, before = self._samples[0]
        if now - began < _SHORTEST_S:
            return None
        tasks, tokens, usd = (n / (now - began) * 60 for n in astuple(total - before))
        return Speed(
            over_s=now - began, tasks_a_minute=tasks, tokens_a_minute=tokens, usd_a_minute=usd
        )


def _history(reader: Reader, batches: Sequence[BatchRow], now: float) -> tuple[float, Done]:
    """Return the moment at which the window begins, and minus what was done since then."""
    wall = time.time()
    oldest = min((row.batch.received_at for row in batches if not row.published_at), default=wall)
    window = min(_WINDOW_S, max(0.0, wall - oldest))
    return now - window, Done() - reader.done_since(wall - window)


def _done(row: BatchRow) -> Done:
    return Done(row.finished, row.input_tokens + row.output_tokens, row.cost_usd or 0.0)
