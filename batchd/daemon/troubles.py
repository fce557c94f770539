"""What goes on failing: told at once, then now and then, and when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from batchd.log import Action

#: The time between two lines about the same trouble, in seconds: it may last for months.
_AGAIN_S = 600.0

_Key: TypeAlias = tuple[Action, object]


@dataclass(slots=True)
class _Trouble:
    since: float
    told_at: float
    times: int = 1


class Troubles:
    """Remembers what has been told."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._known: dict[_Key, _Trouble] = {}

    def tell(self, action: Action, error: Exception) -> None:
        """Tell of a failed try."""
        now, known = self._clock(), self._known.get(_key(action, error))
        if known is None:
            self._known[_key(action, error)] = _Trouble(now, now)
            self._log.error(action, message=f"{error}; it is tried again until it works")
            return
        known.times += 1
        if now - known.told_at >= _AGAIN_S:
            known.told_at = now
            since = round(now - known.since)
            self._log.error(action, message=str(error), times=known.times, for_s=since)

    def over(self, action: Action, error: Exception) -> None:
        """Tell that what failed so has worked."""
        known = self._known.pop(_key(action, error), None)
        if known:
            since = round(self._clock() - known.since, 1)
            message = f"it works again, after: {error}"
            self._log.warning(action, message=message, times=known.times, for_s=since)


def _key(action: Action, error: Exception) -> _Key:
    """Return what tells one trouble from another: not a path, for each file has its own."""
    return action, error.errno if isinstance(error, OSError) else str(error)
