"""How long tests wait for what must come: one limit for all,
so long that only what never comes fails by it.

A machine that does eight other things takes ten times as long as a quiet one. What a test is about
is progress, events and ratios within one run, never how fast this machine is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: For whatever must come: an answer, a process's end, a batch's summary.
#: Less where most of it never comes: ``weakened``.
PATIENCE_S = float(os.environ.get("PATIENCE_S", "240"))


def until(
    condition: Callable[[], object],
    why: Callable[[], str] = str,
    within_s: float = PATIENCE_S,
    every_s: float = 0.02,
) -> None:
    """Wait until something outside this process is so; fail with ``why`` where it never is."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s\n{why()}"
        time.sleep(every_s)
