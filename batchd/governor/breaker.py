"""The circuit breaker of a provider, or of one of its models: whether it is asked at all.

Closed: calls go. Open: it is parked, no call goes. Half-open: one call tries how it does, and its
outcome closes the breaker or opens it again, for longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from batchd.records import (
    Cause,
    ErrorInfo,
)


@dataclass(frozen=True, slots=True)
class Outage:
    """The reason why a provider, or a model, is parked."""

    cause: Cause
    #: What the call that found it out failed with.
    error: ErrorInfo
    #: How long the provider asked everybody to wait, in seconds.
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits of a breaker, in seconds: at first, at most between two tries, and all in all."""

    first_s: float
    longest_s: float
    patience_s: float


class Breaker:
    """The circuit breaker of one provider, or of one of its models: whether it is asked at all.

    Closed: calls go. Open: it is parked, no call goes. Half-open: one call tries how it does, and
    its outcome closes the breaker or opens it again, for longer.
    """

    def __init__(self, half_opened: Callable[[], None]) -> None:
        """``half_opened`` is called when it is time for one call to try."""
        #: Whether somebody paused it.
        self.paused = False
        #: None: closed.
        self.outage: Outage | None = None
        #: When it was opened, and when one call may try, by the loop's clock.
        self.opened_at = self.tried_at = 0.0
        #: Whether one call may try, and which one does.
        self.half_open = False
        self.trial: object = None
        #: Whether the wait for it is over, and its calls end their tasks.
        self.hopeless = False
        #: How long it has been tried in vain, in seconds:
        #: from each opening to the try after it, where that failed.
        self.tried_s = 0.0
        self._half_opened = half_opened
        self._delay_s = 0.0
        self._stood_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def open(self, outage: Outage, waits: Waits) -> None:
        """Park it; it is tried after the first wait, after twice that each time it fails with the
        same cause, and once more when patience ends.
        """
        if self.half_open:
            self.tried_s += self._stood_s
        before_s = self._delay_s if self.outage and self.outage.cause is outage.cause else 0.0
        self._delay_s = min(waits.longest_s, max(waits.first_s, before_s * 2))
        self.outage, self.half_open, self.trial = outage, False, None
        self._cancel()
        loop = asyncio.get_running_loop()
        self.opened_at = loop.time()
        left_s = max(0.0, waits.patience_s - self.tried_s)
        self.tried_at = self.opened_at + min(self._delay_s, left_s)
        self._timer = loop.call_at(self.tried_at, self.try_now)

    def try_now(self) -> None:
        """Let one call try, if it is parked."""
        if self.outage is not None and not self.hopeless:
            self._cancel()
            if not self.half_open:
                self._stood_s = asyncio.get_running_loop().time() - self.opened_at
            self.half_open, self.trial = True, None
            self._half_opened()

    @property
    def shut(self) -> bool:
        """Whether a call is turned away."""
        trying = self.half_open and self.trial is None
        return self.paused or (self.outage is not None and not trying)

    def entered(self, call: object) -> None:
        """Note that a call goes: if one may try, it is this one."""
        if self.half_open:
            self.trial = call

    def news(self, call: object) -> bool:
        """Whether the failure of a call is news: of what is parked,
        only where the call has tried how that does.
        """
        return self.outage is None or (self.half_open and call is self.trial)

    def proved(self, granted_at: float) -> bool:
        """Whether the answer to a call proves that the outage is over:
        not where the call went before it began.
        """
        return self.outage is not None and not self.hopeless and granted_at > self.opened_at

    def ended(self, call: object) -> None:
        """Say that a call is over, whatever it brought:
        if it was the trial, another one may try.
        """
        if self.trial is call:
            self.trial = None
            if self.half_open:
                self._half_opened()

    def give_up(self) -> None:
        """Wait no longer: until it is closed, calls end their tasks."""
        self._cancel()
        self.half_open, self.hopeless = False, True

    def close(self) -> None:
        """Let calls go."""
        self._cancel()
        self.outage, self.half_open, self.hopeless = None, False, False
        self._delay_s = self.tried_s = 0.0

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
