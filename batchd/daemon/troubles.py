"""What goes on failing: told at once, then now and then, and when it is over; and known as long as it lasts."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from batchd.log import Action

#: The time between two lines about the same trouble, in seconds: it may last for months.
_AGAIN_S = 600.0

_Key: TypeAlias = tuple[Action, object]

_SPACE = "make room on that disk"
_ACCESS = "let the user that batchd runs as write there"
_FOLDER = "put the folder back, with its disk mounted"
#: What a user can do, by what the system said.
_MENDS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "mount that disk writable again",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOENT: _FOLDER,
    errno.ENOTDIR: _FOLDER,
    errno.EIO: "look at the disk: it fails",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """One that is open, as ``status`` tells it."""

    what: Action
    message: str
    #: Seconds since the epoch.
    since: float
    mend: str


@dataclass(slots=True)
class _Open:
    """A trouble, and how many pieces of work meet it."""

    told: Trouble
    begun: float
    told_at: float
    times: int = 0
    waiting: set[Tries] = field(default_factory=set)


class Troubles:
    """Remembers what is open, and what of it has been told."""

    def __init__(
        self,
        log: Any,
        clock: Callable[[], float] = time.monotonic,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """``ended``: called when a trouble is over, for somebody may have waited for that."""
        self._log = log
        self._clock = clock
        self._ended = ended
        self._known: dict[_Key, _Open] = {}

    @property
    def open(self) -> tuple[Trouble, ...]:
        """What fails at this time, oldest first."""
        return tuple(known.told for known in self._known.values())

    def has(self, *actions: Action) -> bool:
        """Tell whether trouble of one of these kinds is open."""
        return any(action in actions for action, _ in self._known)

    def trying(self, action: Action) -> Tries:
        """Return a context for work that is tried until it works; leaving it in peace says that it did."""
        return Tries(self, action)

    def meet(self, key: _Key, tries: Tries, error: Exception) -> None:
        """Tell of a failed try."""
        now, known = self._clock(), self._known.get(key)
        if known is None:
            trouble = Trouble(key[0], str(error), time.time(), _mend(error))
            known = self._known[key] = _Open(trouble, now, now)
            self._log.error(key[0], message=f"{error}; it is tried again until it works")
        known.times += 1
        known.waiting.add(tries)
        if now - known.told_at >= _AGAIN_S:
            known.told_at = now
            since = round(now - known.begun)
            self._log.error(key[0], message=str(error), times=known.times, for_s=since)

    def leave(self, key: _Key, tries: Tries, error: Exception) -> None:
        """Note that a piece of work meets it no more; the last one ends it, and tells so."""
        known = self._known[key]
        known.waiting.discard(tries)
        if not known.waiting:
            del self._known[key]
            since = round(self._clock() - known.begun, 1)
            message = f"it works again, after: {error}"
            self._log.warning(key[0], message=message, times=known.times, for_s=since)
            self._ended()


class Tries:
    """One piece of work that is tried until it works. However it ends, it leaves no trouble open."""

    __slots__ = ("_action", "_error", "_troubles")

    def __init__(self, troubles: Troubles, action: Action) -> None:
        self._troubles = troubles
        self._action = action
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.worked()

    def failed(self, error: Exception) -> None:
        """Say that it has failed."""
        if self._error is not None and self._key(self._error) != self._key(error):
            self.worked()
        self._error = error
        self._troubles.meet(self._key(error), self, error)

    def worked(self) -> None:
        """Say that it fails no more."""
        error, self._error = self._error, None
        if error is not None:
            self._troubles.leave(self._key(error), self, error)

    def _key(self, error: Exception) -> _Key:
        """Return what tells one trouble from another: not a path, for each file has its own."""
        return self._action, error.errno if isinstance(error, OSError) else str(error)


def _mend(error: Exception) -> str:
    """Return what a user can do about it; empty where the message says so, or nobody knows."""
    return _MENDS.get(error.errno or 0, "") if isinstance(error, OSError) else ""
