"""A time that no clock set wrong can bring forward."""

from __future__ import annotations

import time
from collections.abc import Callable


def unset() -> Callable[[], float]:
    """Return a clock, in seconds since the epoch: as it stands now, however it is set ahead later.

    For what is dropped for good after a while: a clock that is a year ahead for a minute must not drop it.
    One that is set back counts, and the time that a machine sleeps does.
    """
    begun = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: min(time.time(), begun + time.clock_gettime(time.CLOCK_BOOTTIME))
