"""Whether anything stands still that could move:
pure, so that it can be shown to find what it is for.

A *lane* is what may stand still by itself: the tasks of one model, or the inbox. A *hindrance* is
what the run does to it for a while: weather, a pause, a full disk.
Where a lane has work and no hindrance, it must move.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

#: Files that are not claimed yet, or whose folder is not there.
INBOX = "inbox"
#: The longest time between two looks that counts:
#: where the judge itself stood still, nothing is anybody's fault.
_STEP_S = 2.0


@dataclass(eq=False)
class Hindrance:
    """Something that may hold work up."""

    what: str
    begun: float
    #: The lanes that it concerns; None: all of them.
    lanes: Collection[str] | None = None
    #: The batches that it concerns; None: all of them.
    batches: Collection[str] | None = None
    #: How long it may be felt after its end: a Retry-After that is waited out.
    felt_s: float = 0.0
    ended: float | None = None

    def concerns(self, lane: str, batch: str, now: float) -> bool:
        """Whether it may hold up this lane's work on this batch."""
        over = self.ended is not None and now >= self.ended + self.felt_s
        mine = self.lanes is None or lane in self.lanes
        return not over and mine and (self.batches is None or batch in self.batches)


@dataclass
class Journal:
    """What was done to the daemon and its world, and when."""

    hindrances: list[Hindrance] = field(default_factory=list)
    _lines: list[tuple[float, str]] = field(default_factory=list)

    def note(self, now: float, text: str) -> None:
        """Write down what happened in an instant."""
        self._lines.append((now, text))

    def begin(self, hindrance: Hindrance) -> Hindrance:
        """Write down what begins, and return it."""
        self.hindrances.append(hindrance)
        self.note(hindrance.begun, f"begins: {hindrance.what}")
        return hindrance

    def end(self, hindrance: Hindrance, now: float) -> None:
        """Write down its end."""
        hindrance.ended = now
        self.note(now, f"ends:   {hindrance.what}")

    def hinders(self, lane: str, batch: str, now: float) -> bool:
        """Whether anything may hold up this lane's work on this batch now."""
        return any(h.concerns(lane, batch, now) for h in self.hindrances)

    def forget(self, now: float) -> None:
        """Drop the hindrances that are not felt any more."""
        self.hindrances = [
            h for h in self.hindrances if h.ended is None or now < h.ended + h.felt_s
        ]

    def tail(self, now: float, seconds: float) -> list[str]:
        """Return the lines of the last seconds, each with how long ago it was."""
        return [f"{at - now:8.1f} s  {text}" for at, text in self._lines if at >= now - seconds]


def could_move(work: Iterable[tuple[str, str]], journal: Journal, now: float) -> frozenset[str]:
    """Return the lanes that have work (lane, batch) which nothing holds up."""
    return frozenset(lane for lane, batch in set(work) if not journal.hinders(lane, batch, now))


class Patience:
    """For how long each lane could have moved and has not."""

    def __init__(self) -> None:
        self._looked: float | None = None
        self._stood: dict[str, float] = {}

    def look(self, now: float, could: Collection[str], moved: Collection[str]) -> None:
        """Note which lanes could move, and which have moved since the last look."""
        step = 0.0 if self._looked is None else min(_STEP_S, now - self._looked)
        self._looked = now
        self._stood = {
            lane: 0.0 if lane in moved else self._stood.get(lane, 0.0) + step for lane in could
        }

    def worn(self, limit_s: float) -> dict[str, float]:
        """Return the lanes that stood still for longer than that, each with its seconds."""
        return {lane: stood for lane, stood in self._stood.items() if stood > limit_s}

    def ease(self) -> None:
        """Begin again, for all lanes."""
        self._stood = {}
