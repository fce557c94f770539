"""The lease of a worker on another machine: how long it may go on without word from the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Heartbeats whose answers may be under way.
_KEPT = 64


def now() -> float:
    """Return seconds of a clock that no one sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The worker's view of its lease.

    It counts from when a heartbeat was sent, the daemon's from when that came:
    so it never outlasts the daemon's.
    """

    def __init__(self, first_s: float, report: Callable[[float], None]) -> None:
        """``first_s``: until the daemon has said how long it lasts.

        ``report``: takes each end of it, by ``now``.
        """
        self._lasts_s = 0.0
        self._report = report
        self._until = now() + first_s
        self._number = 0
        #: When each heartbeat was sent whose answer has not come.
        self._sent: dict[int, float] = {}

    @property
    def lapsed(self) -> bool:
        """Whether the worker may do nothing more."""
        return now() >= self._until

    def lasts(self, lease_s: float) -> None:
        """Take how long it lasts from each renewal on, in seconds, and from now on at most."""
        self._lasts_s = lease_s
        self._until = min(self._until, now() + lease_s)
        self._report(self._until)

    def sending(self) -> int:
        """Return the number of the heartbeat that is sent now."""
        self._number += 1
        self._sent[self._number] = now()
        self._sent.pop(self._number - _KEPT, None)
        return self._number

    def renewed(self, number: int) -> None:
        """Take the daemon's answer to a heartbeat."""
        sent = self._sent.pop(number, None)
        if sent is not None:
            self._until = sent + self._lasts_s
            self._report(self._until)
