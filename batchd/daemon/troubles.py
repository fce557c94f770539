"""Troubles, what goes on failing: logged at once, then now and then,
and when it is over; shown as open as long as it lasts.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import msgspec

from batchd import silent_paths
from batchd.control import OpenTrouble
from batchd.errors import NotPossibleError
from batchd.free_room import ALLOW_WRITING, MOUNT_WRITABLE, NoRoomError
from batchd.log import Action
from batchd.spool.outbox import StrangeOutboxError

#: The pause after the disk refused something.
TROUBLE_S = 1.0
#: The time between two lines about the same trouble, in seconds: it may last for months.
_AGAIN_S = 600.0

#: What fails, what the system said, and what it concerns:
#: nothing in particular, an outbox, or single batches.
_Key: TypeAlias = tuple[Action, object, str]
#: Returns what somebody meets, and since when; None: nothing.
Ask: TypeAlias = Callable[[], tuple[Exception, float] | None]
#: Stands for batches, each with a trouble of its own folder's.
_BATCHES = "batches"
#: Batches that are named.
_NAMED = 20

_FOLDER = "put the folder back, with its disk mounted"
#: What a user can do, by what the system said.
_FIXES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: MOUNT_WRITABLE,
    errno.EACCES: ALLOW_WRITING,
    errno.EPERM: ALLOW_WRITING,
    errno.ENOENT: _FOLDER,
    errno.ENOTDIR: _FOLDER,
    errno.EEXIST: _FOLDER,  # a file stands in its place
    errno.EIO: "check the disk: it fails",
    errno.ETIMEDOUT: silent_paths.FIX,
}


@dataclass(frozen=True, slots=True)
class TroubleSubject:
    """The subject of a trouble; empty: everything."""

    #: The whole of an outbox, an absolute path.
    outbox: str = ""
    #: One batch alone.
    batch: str = ""


_EVERYTHING = TroubleSubject()


@dataclass(slots=True)
class _Open:
    """A trouble, and how many pieces of work meet it."""

    trouble: OpenTrouble
    begun: float
    logged_at: float
    times: int = 0
    waiting: set[Tries] = field(default_factory=set)

    def batches(self) -> set[str]:
        """Return the single batches that it concerns."""
        return {tries.place.batch for tries in self.waiting if tries.place.batch}

    def seen(self) -> OpenTrouble:
        """Return it as it stands now."""
        return msgspec.structs.replace(self.trouble, batches=tuple(sorted(self.batches())[:_NAMED]))


@dataclass(eq=False, repr=False)
class TroubleLog:
    """The open troubles, and what of each was logged."""

    _log: Any
    _clock: Callable[[], float] = time.monotonic
    #: Called when a trouble is over, for somebody may have waited for that.
    ended: Callable[[], None] = lambda: None
    _known: dict[_Key, _Open] = field(default_factory=dict)
    _others: list[tuple[Action, Ask]] = field(default_factory=list)

    @property
    def open(self) -> tuple[OpenTrouble, ...]:
        """What fails at this time, oldest first."""
        others = [trouble(what, *found) for what, ask in self._others if (found := ask())]
        return tuple(
            sorted(
                (*(k.seen() for k in self._known.values()), *others),
                key=lambda trouble: trouble.since,
            )
        )

    def also(self, what: Action, ask: Ask) -> None:
        """Add to ``open`` what another part keeps trying, and logs itself."""
        self._others.append((what, ask))

    def stops(self, *actions: Action) -> bool:
        """Return whether trouble of one of these kinds is open that concerns everything."""
        return any(action in actions and not concerned for action, _, concerned in self._known)

    def outboxes(self) -> set[str]:
        """Return the outboxes that take nothing."""
        return {where for _, _, where in self._known} - {"", _BATCHES}

    def holds(self, outbox: str, batch: str) -> bool:
        """Return whether a batch's results cannot be written:
        none in its outbox, or none of its own.
        """
        return outbox in self.outboxes() or any(
            where == _BATCHES and batch in known.batches()
            for (_, _, where), known in self._known.items()
        )

    def trying(self, action: Action) -> Tries:
        """Return a context for work that is tried until it works;
        leaving it in peace says that it did.
        """
        return Tries(self, action)

    def meet(self, key: _Key, tries: Tries, error: Exception) -> None:
        """Log a failed try, and count it."""
        now, known = self._clock(), self._known.get(key)
        if known is None:
            known = self._known[key] = _Open(trouble(key[0], error, time.time()), now, now)
            self._log.error(key[0], message=f"{error}; batchd tries again until it works")
        known.times += 1
        known.waiting.add(tries)
        if now - known.logged_at >= _AGAIN_S:
            known.logged_at = now
            since = round(now - known.begun)
            self._log.error(key[0], message=str(error), times=known.times, for_s=since)

    def leave(self, key: _Key, tries: Tries, error: Exception, *, worked: bool) -> None:
        """Note that a piece of work meets it no more;
        the last one ends it, and logs that, unless it was given up.
        """
        known = self._known[key]
        known.waiting.discard(tries)
        if known.waiting:
            return
        del self._known[key]
        if worked:
            since = round(self._clock() - known.begun, 1)
            message = f"it works again, after: {error}"
            self._log.warning(key[0], message=message, times=known.times, for_s=since)
        self.ended()


class Tries:
    """One piece of work that is tried until it works.

    However it ends, it leaves no trouble open.
    """

    __slots__ = ("_action", "_error", "_troubles", "place")

    def __init__(self, troubles: TroubleLog, action: Action) -> None:
        self._troubles = troubles
        self._action = action
        self._error: Exception | None = None
        #: What it concerns that this work fails.
        self.place = _EVERYTHING

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave(worked=kind is None)

    def failed(self, error: Exception, place: TroubleSubject = _EVERYTHING) -> None:
        """Say that it has failed, and what that concerns."""
        if self._error is not None and self._key(self._error, self.place) != self._key(
            error, place
        ):
            self._leave(worked=False)  # it fails for another reason now
        self._error, self.place = error, place
        self._troubles.meet(self._key(error, place), self, error)

    def worked(self) -> None:
        """Say that it fails no more."""
        self._leave(worked=True)

    def _leave(self, *, worked: bool) -> None:
        error, self._error = self._error, None
        if error is not None:
            key = self._key(error, self.place)
            self._troubles.leave(key, self, error, worked=worked)

    def _key(self, error: Exception, place: TroubleSubject) -> _Key:
        """Return what distinguishes one trouble from another:
        not a path, for each file has its own.
        """
        what = error.errno if isinstance(error, OSError) else str(error)
        return self._action, what, place.outbox or (place.batch and _BATCHES)


def trouble(what: Action, error: Exception, since: float) -> OpenTrouble:
    """Return an error as ``status`` shows it."""
    message, fix = str(error), ""
    if isinstance(error, OSError):
        fix = _fix(error)
        if error.filename and error.strerror:
            message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif isinstance(error, NotPossibleError):
        message, _, fix = message.rpartition(": ")
    return OpenTrouble(what, message, since, fix or "see the log; batchd tries again by itself")


def refused(error: Exception) -> str:
    """Return why something is not done, and the fix, for who may ask for it again."""
    if isinstance(error, OSError) and (fix := _fix(error)):
        return f"{error}; {fix}, then give it again"
    return f"{error}; give it again once that is fixed"


def _fix(error: OSError) -> str:
    """Return what a user can do; empty: that is not known."""
    if isinstance(error, NoRoomError | StrangeOutboxError):
        return error.fix
    return _FIXES.get(error.errno or 0, "")
