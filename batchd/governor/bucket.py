"""What may go at once, and comes back with time: a bucket, and the account of a minute."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf

_MINUTE_S = 60.0
#: A rest of floating point.
_NOTHING = 1e-6


class Bucket:
    """A token bucket: lets ``rate`` a second through, ``burst`` at once;
    of that, if ``peak`` is set, so much a second.
    """

    def __init__(self, rate: float, burst: float, level: float, now: float) -> None:
        """``level``: how much of the burst may go at once."""
        self.rate = rate
        self.burst = burst
        self.peak = 0.0
        #: What went beyond the burst is forgotten after so many seconds.
        self.longest_s = inf
        self._level = level
        self._at = now
        self._spaced_until = now

    def level(self, now: float) -> float:
        """Return what may go at once; negative: so much too much has gone."""
        self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        return self._level

    def ready_at(self, now: float, amount: float) -> float:
        """Return when ``amount`` may go. More than the burst goes when the bucket is full."""
        missing = min(amount, self.burst) - self.level(now)
        at = now + missing / self.rate if missing > _NOTHING else now
        return max(at, self._spaced_until)

    def take(self, now: float, amount: float) -> None:
        """Count ``amount`` as gone; a negative one gives back."""
        level = max(self.level(now) - amount, -self.longest_s * self.rate)
        self._level = min(self.burst, level)
        if self.peak and amount > 0:
            self._spaced_until = now + amount / self.peak

    def refill(self, now: float, wait_s: float, amount: float) -> None:
        """Start over with nothing in it, but so that ``amount`` may go after ``wait_s``."""
        self._at = now
        self._level = max(0.0, min(amount, self.burst) - wait_s * self.rate)


class Minute:
    """The account of a minute: keeps what goes within any at or below ``limit``,
    also where counts are corrected afterwards.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._entries: deque[SpentAmount] = deque()
        self._total = 0.0

    def ready_at(self, now: float, amount: float) -> float:
        """Return when ``amount`` may go. More than the limit goes when a minute had nothing."""
        self._forget(now)
        over = self._total + min(amount, self.limit) - self.limit
        for entry in self._entries:
            if over <= _NOTHING:
                break
            over -= entry.amount
            now = max(now, entry.at + _MINUTE_S)
        return now

    def take(self, now: float, amount: float) -> SpentAmount:
        """Count ``amount`` as gone."""
        self._forget(now)
        entry = SpentAmount(now, amount)
        self._entries.append(entry)
        self._total += amount
        return entry

    def correct(self, entry: SpentAmount, amount: float, now: float) -> None:
        """Say what an entry really was."""
        self._forget(now)
        if entry.at + _MINUTE_S > now:
            self._total += amount - entry.amount
            entry.amount = amount

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0].at + _MINUTE_S <= now:
            self._total -= self._entries.popleft().amount


@dataclass(slots=True, eq=False)
class SpentAmount:
    """An amount, and when it went."""

    at: float
    amount: float
