"""Whether a provider is asked at all: a circuit breaker, as the field calls it.

Closed: calls go. Open: the provider is parked, nobody asks it. Half-open: one call tries how it
does, and its outcome closes the breaker or opens it again, for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from batchd.records import Cause, ErrorInfo


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a provider is parked."""

    cause: Cause
    #: What the call that found it out failed with.
    error: ErrorInfo
    #: How long the provider asked everybody to wait, in seconds.
    wait_s: float = 0.0


class Breaker:
    """The breaker of one provider."""

    def __init__(self, half_opened: Callable[[], None]) -> None:
        """``half_opened`` is called when it is time for one call to try."""
        #: None: closed.
        self.outage: Outage | None = None
        #: When it was opened, and when one call may try, by the loop's clock.
        self.opened_at = self.tried_at = 0.0
        #: Whether one call may try, and which one does.
        self.half_open = False
        self.trial: object = None
        #: Whether the wait for the provider is over, and its calls end their tasks.
        self.hopeless = False
        self._half_opened = half_opened
        self._delay_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def open(self, outage: Outage, first_s: float, longest_s: float) -> None:
        """Park the provider; it is tried after ``first_s``, then twice that, at most ``longest_s``."""
        self._delay_s = min(longest_s, max(first_s, self._delay_s * 2))
        self.outage, self.half_open, self.trial = outage, False, None
        self._cancel()
        loop = asyncio.get_running_loop()
        self.opened_at = loop.time()
        self.tried_at = self.opened_at + self._delay_s
        self._timer = loop.call_at(self.tried_at, self.try_now)

    def try_now(self) -> None:
        """Let one call try, if the provider is parked."""
        if self.outage is not None and not self.hopeless:
            self._cancel()
            self.half_open, self.trial = True, None
            self._half_opened()

    @property
    def shut(self) -> bool:
        """Whether a call is turned away."""
        return self.outage is not None and not (self.half_open and self.trial is None)

    def proved(self, granted_at: float) -> bool:
        """Whether the answer to a call tells that the outage is over: not where the call went before it began."""
        return self.outage is not None and not self.hopeless and granted_at > self.opened_at

    def ended(self, call: object) -> None:
        """Say that a call is over, whatever it brought: if it was the trial, another one may try."""
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
        self._delay_s = 0.0

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
