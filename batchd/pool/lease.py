"""The lease of a worker on another machine: how long it may go on without word from the daemon."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable

#: Heartbeats whose answers may be under way.
_KEPT = 64
#: How long after its lease a worker that has not ended by itself is killed, in seconds.
_GRACE_S = 1.0


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
        report(self._until)
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


class Deadline:
    """A timer of the kernel that kills this process:
    also one that hangs, or was stopped and never goes on.

    See timer_create(2), and timespec(3), whose two fields are as wide as a C ``long`` here.
    """

    _EVENT, _SIGEV_SIGNAL, _TIMER_ABSTIME = struct.Struct("@Pii"), 0, 1
    _EVENT_BYTES, _TIMES = 64, struct.Struct("@llll")

    def __init__(self) -> None:
        """Raise ``OSError`` where the kernel has none to give."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = self._EVENT.pack(0, signal.SIGKILL, self._SIGEV_SIGNAL).ljust(
            self._EVENT_BYTES, b"\0"
        )
        if self._libc.timer_create(time.CLOCK_BOOTTIME, event, ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set(self, lapses_at: float) -> None:
        """Kill this process soon after a moment, by ``now``, and at no other."""
        whole, part = divmod(lapses_at + _GRACE_S, 1.0)
        times = self._TIMES.pack(0, 0, int(whole), int(part * 1e9))
        self._libc.timer_settime(self._timer, self._TIMER_ABSTIME, times, None)
