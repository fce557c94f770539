"""One limit of a provider, in requests or in tokens a second:
configured, read from headers, or found out.

Found out from the first refusal on: between two refusals a provider admits what it allows, no more.
The rate is cut to that, and grows from there until the next refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from batchd.governor.bucket import Bucket, Minute, SpentAmount

#: A provider that is met for the first time is approached over a moment:
#: so many requests at once, …
_FIRST_BURST = 8.0
#: … then so many a second, …
_FIRST_RATE = 100.0
#: … for so long. Refusals come back within milliseconds; so there are few of them.
_FIRST_S = 2.0
#: What was granted longer ago says little about the rate of today.
_MEMORY_S = 60.0
#: A guessed rate grows by this part a second until it is refused, …
_GUESS_GROWTH = 0.5
#: … a measured one so slowly that refusals stay rare, and the waits that they bring: …
_GROWTH, _MOST_GROWTH, _GROWTH_A_REQUEST = 0.003, 0.006, 0.002
#: … but ever faster, the longer it goes well.
_CALM_S = 60.0
#: What was cut by half, for want of better knowledge, is back after so long.
_RECOVERY_S = 30.0
#: What was measured is kept to with this margin.
_MARGIN = 0.985
#: No shorter time is measured.
_INSTANT_S = 1e-3
#: Grants that make a measurement.
_SAMPLE = 20
#: What was saved up during a pause is spent at this multiple of the rate.
_PEAK = 2.0
#: A learned rate fills its bucket within this time:
#: nothing waits longer for what is not configured.
_MAX_FILL_S = 60.0


@dataclass(slots=True)
class _Cut:
    """Why the rate is what it is: what was admitted until the refusal that cut it."""

    at: float
    #: Since the refusal before, when nothing was left.
    admitted: float
    seconds: float
    #: Recently, without what may have been saved up before.
    lately: float
    lately_s: float
    #: What the rate is not cut below, and what it was before.
    lowest: float
    before: float
    #: How much of the rate it grows a second from here.
    growth: float = 0.0


class Meter:
    """The meter of one limit.

    Amounts are requests (1 each) or tokens; times are seconds of one clock.
    """

    def __init__(self, *, approach: bool = False) -> None:
        """``approach``: begin over a moment, as nothing is known yet."""
        #: None: nothing is held back.
        self._bucket: Bucket | None = None
        self._minute: Minute | None = None
        #: A limit a minute; 0: none is configured.
        self._configured = 0
        #: What the rate does not grow above.
        self._ceiling = inf
        self._approach = approach
        self._approach_until = inf
        #: Granted since then, and not refused.
        self._sent = 0.0
        self._since = inf
        #: Moments since then, and what had been granted: at least and at most a sample ago.
        self._earlier = self._mark = (0.0, 0.0)
        self._cut: _Cut | None = None
        #: Whether the rate was only guessed, at the first refusal.
        self._guessed = False
        self._step = 0.0
        self._grown_at = 0.0
        #: Whether a call waited for it since the last grant; whether none did, once since the cut.
        self._pressed = False
        self._slack = False

    @property
    def rate(self) -> float:
        """What may go a second, as far as it is known; else infinite."""
        return inf if self._bucket is None or self._approach else self._bucket.rate

    def configure(self, a_minute: int, now: float, *, exact: bool = False) -> None:
        """Take a configured limit; 0: find it out. ``exact``: amounts are corrected afterwards."""
        if a_minute == self._configured:
            return
        self._configured, self._cut = a_minute, None
        self._minute = Minute(a_minute) if a_minute and exact else None
        if not a_minute:
            self._bucket, self._ceiling = None, inf
            return
        burst = max(1.0, a_minute / 60)
        # With its burst, a minute has no more than the limit.
        self._ceiling = (a_minute - (0.0 if exact else burst - 1)) / 60
        self._hold(self._ceiling, burst, burst, now)

    def ready_at(self, now: float, amount: float) -> float:
        """Return when ``amount`` may go: ``now``, or later."""
        bucket = self._bucket
        if bucket is None:
            if not self._approach:
                return now
            bucket = self._bucket = Bucket(_FIRST_RATE, _FIRST_BURST, _FIRST_BURST, now)
            self._approach_until = now + _FIRST_S
        elif self._approach and now >= self._approach_until:
            self._bucket, self._approach = None, False
            return now
        at = bucket.ready_at(now, amount)
        if self._minute is not None:
            at = max(at, self._minute.ready_at(now, amount))
        if at > now:
            self._pressed = True
        return at

    def take(self, now: float, amount: float) -> SpentAmount | None:
        """Count ``amount`` as gone; return its entry where it may be corrected exactly."""
        if self._since == inf:
            self._start_count(now)
        elif now - self._since > _MEMORY_S and self._cut is None:
            self._start_count(now - _MEMORY_S / 2, self._sent / 2)
        self._sent += amount
        if self._bucket is None:
            return None
        if self._sent - self._mark[1] >= _SAMPLE * max(amount, self._bucket.burst / 4):
            self._earlier, self._mark = self._mark, (now, self._sent)
        self._bucket.take(now, amount)
        if not self._approach:
            self._grow(now, self._bucket)
        return self._minute.take(now, amount) if self._minute else None

    def correct(self, entry: SpentAmount | None, taken: float, used: float, now: float) -> None:
        """Say what was really used of an amount taken."""
        self._sent = max(0.0, self._sent + used - taken)
        if self._bucket is not None:
            self._bucket.take(now, used - taken)
        if self._minute is not None and entry is not None:
            self._minute.correct(entry, used, now)

    def adopt(self, rate: float, burst: float, now: float) -> None:
        """Take a limit from the provider's own headers, where none is configured."""
        if self._configured:
            return
        self._ceiling = rate = max(rate, burst / _MAX_FILL_S)
        bucket = self._bucket
        if bucket is None or self._approach:
            self._hold(rate, burst, 0.0, now)
        elif self._cut is None or self._guessed or bucket.rate > rate:
            self._guessed = False
            bucket.rate = rate

    def relax(self) -> None:
        """Drop a limit from headers, which report plenty now."""
        if not self._configured and self._cut is None and not self._approach:
            self._bucket, self._ceiling = None, inf

    def refused(self, granted_at: float, amount: float, now: float, wait_s: float) -> bool:
        """Learn from a refusal, after which nothing goes for ``wait_s``;
        return whether it cut the rate.

        All requests that went before the cut are one epoch:
        their refusals only correct what is known.
        """
        if self._since == inf:
            self._start_count(granted_at)
        self._sent = max(0.0, self._sent - amount)
        cut, bucket = self._cut, self._bucket
        late = cut is not None and granted_at <= cut.at
        if cut is None or (self._sent and not late):
            if bucket is None or self._approach:
                bucket = self._hold(0.0, 0.0, 0.0, now)
                cut = self._guess(amount, now, wait_s)
            else:
                cut = self._measure(bucket, amount, now, wait_s)
        elif late:
            cut.admitted -= amount
        else:
            # Nothing at all is admitted: that is no matter of the rate.
            cut.at = now
        assert bucket is not None, "there is one since the first cut"
        self._cut = cut
        self._apply(cut, bucket, amount)
        if late:
            return False
        bucket.refill(now, wait_s, amount)
        self._start_count(now)
        self._pressed = True
        return True

    def forgive(self, now: float, amount: float) -> None:
        """Let ``amount`` go now, however long a refusal asked to wait: its answer will show."""
        bucket = self._bucket
        if bucket is not None and not self._configured and bucket.level(now) < amount:
            bucket.refill(now, 0.0, amount)

    def _start_count(self, now: float, sent: float = 0.0) -> None:
        self._since, self._sent, self._slack = now, sent, False
        self._earlier = self._mark = (now, sent)

    def _guess(self, amount: float, now: float, wait_s: float) -> _Cut:
        """Return what the very first refusal says:
        as if what went so far were there again after the wait.
        """
        self._guessed = True
        seconds = now - self._since + wait_s
        return _Cut(now, self._sent, seconds, 0.0, 1.0, amount / _MAX_FILL_S, inf)

    def _measure(self, bucket: Bucket, amount: float, now: float, wait_s: float) -> _Cut:
        """Return what the first refusal of an epoch says, after one before."""
        sent, before = self._sent, bucket.rate
        seconds = now - self._since
        growth = min(_MOST_GROWTH, _GROWTH / wait_s, _GROWTH_A_REQUEST * before / amount)
        few = sent < _SAMPLE * amount
        if amount < bucket.burst >= sent - amount and few and not self._configured:
            # It was not the rate: less had been saved up than we thought.
            bucket.burst = max(amount, min(bucket.burst, sent) - amount)
            return _Cut(now, sent, seconds, 0.0, 1.0, before, before, growth)
        lowest = before / 2 if self._slack or not self._guessed else amount / _MAX_FILL_S
        self._guessed = False
        at, count = self._earlier
        lately = sent - count - bucket.burst
        return _Cut(now, sent, seconds, lately, now - at, lowest, before, growth)

    def _apply(self, cut: _Cut, bucket: Bucket, amount: float) -> None:
        """Set the rate to what the provider admitted."""
        if cut.before == inf:
            bucket.burst = max(amount, cut.admitted)
            admitted = bucket.burst / cut.seconds
        else:
            lately = cut.lately / max(cut.lately_s, _INSTANT_S)
            # At both refusals there was half a request left, as an average.
            admitted = (cut.admitted + amount / 2) / max(cut.seconds, _INSTANT_S)
            admitted = max(_MARGIN * admitted, lately)
        bucket.rate = min(max(admitted, cut.lowest), cut.before, self._ceiling)
        bucket.peak = 0.0 if self._configured else _PEAK * bucket.rate
        self._step = cut.growth * bucket.rate
        if admitted < cut.lowest:
            self._step = max(self._step, (cut.before - bucket.rate) / _RECOVERY_S)

    def _hold(self, rate: float, burst: float, level: float, now: float) -> Bucket:
        self._approach = False
        bucket = self._bucket = Bucket(rate, burst, level, now)
        if not self._configured:
            bucket.longest_s = _MAX_FILL_S
        return bucket

    def _grow(self, now: float, bucket: Bucket) -> None:
        """Let the rate grow, while it is what holds requests back."""
        if not self._pressed:
            self._slack = True
        elif bucket.rate < self._ceiling:
            passed = min(1.0, now - self._grown_at)
            step = _GUESS_GROWTH * bucket.rate if self._guessed else self._step
            if self._cut is not None and not self._guessed:
                step *= 1 + (now - self._cut.at) / _CALM_S
            bucket.rate = min(self._ceiling, bucket.rate + step * passed)
            if bucket.peak:
                bucket.peak = _PEAK * bucket.rate
        self._pressed, self._grown_at = False, now
