"""Changes of the configuration and of the clock, good ones and bad ones."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Collection

from files import LANES
from ground import OTHER, Ground
from record import Record
from timetable import Timetable

_HOUR = 3600.0
_DAY = 24 * _HOUR
#: By how much the clock is set ahead, or behind.
_AHEAD = (2 * _HOUR, -2 * _HOUR, _DAY, -_DAY, 8 * _DAY)
#: What a day may cost where budgets are tried, and the first such day:
#: none of the others comes near.
POOR_USD = 0.012
_POOR_DAY = 20


class Tampering:
    """Tampers with a ground."""

    def __init__(self, ground: Ground, times: Timetable) -> None:
        self._ground = ground
        self._times = times
        self._others = itertools.count(1)
        self._poor_days = itertools.count(_POOR_DAY, 4)

    def configure(self, record: Record) -> None:
        """Have the daemon read another configuration for a while:
        a good one, a wrong one, one without a provider.
        """
        if not self._times.take("configuration"):
            return
        rng, ground = self._times.rng, self._ground
        south = [lane for lane in LANES if lane.startswith("south/")]
        ways: list[tuple[dict[str, object], Collection[str] | None]] = [
            ({"processes": rng.randint(1, 4), "agents": rng.randint(1, 4)}, ()),
            # A daemon that dies meanwhile cannot start.
            ({"wrong": "[paths\n"}, None),
            ({"wrong": "[pools]\nprocesses = 1\n"}, None),
            ({"providers": ("north",)}, south),
        ]
        changes, lanes = rng.choice(ways)
        former = {name: getattr(ground.settings, name) for name in changes}
        record.without_provider |= "providers" in changes
        ground.configure(**changes)
        ground.signal(signal.SIGHUP)

        def end() -> None:
            ground.configure(**former)
            ground.signal(signal.SIGHUP)
            self._times.give_back("configuration")

        self._times.lasting(f"configuration {changes}", end, lanes=lanes)

    def other_outbox(self, record: Record) -> None:
        """Name another outbox, which cannot be made;
        what was taken meanwhile may wait until it can, and nothing else.
        """
        if not self._times.take("configuration"):
            return
        ground, first = self._ground, len(record.dropped)
        place = ground.arena.folder / f"{OTHER}{next(self._others)}"
        place.write_text("in the way\n")
        ground.configure(outbox=f"{place.name}/outbox")
        ground.signal(signal.SIGHUP)

        def clear() -> None:
            place.unlink()
            place.mkdir()

        def end() -> None:
            ground.configure(outbox=ground.settings.home)
            ground.signal(signal.SIGHUP)
            self._times.give_back("configuration")
            taken = {dropped.file.batch for dropped in record.dropped[first:]}
            self._times.lasting(f"a file in the place of {place.name}", clear, batches=taken)

        self._times.lasting("another outbox", end)

    def set_clock(self) -> None:
        """Set the clock wrong for a while, under a running daemon or between two."""
        if not self._times.take("clock"):
            return
        if self._times.rng.random() < 0.5:
            self._ground.signal(signal.SIGKILL)
        ahead_s = self._times.rng.choice(_AHEAD)
        self._ground.move_clock(ahead_s)

        def end() -> None:
            self._ground.move_clock(0.0)
            self._times.give_back("clock")

        self._times.lasting(f"the clock is ahead by {ahead_s / _HOUR:g} h", end, lanes=())

    def poor_days(self, record: Record) -> None:
        """Spend a day's budget, start on the next day, and have the clock corrected:
        neither costs more.
        """
        if not self._times.take("clock", "configuration"):
            return
        days = next(self._poor_days)
        first = int(time.time() // _DAY) + days
        record.poor_days |= {first, first + 1}
        self._ground.configure(per_day_usd=POOR_USD)

        def go_to(day: int, *, restarted: bool) -> None:
            self._times.note(f"to day {day}{', by a restart' * restarted}")
            if restarted:
                self._ground.signal(signal.SIGKILL)
            self._ground.move_clock(day * _DAY)

        def end() -> None:
            # Rich again today alone: a day that was poor stays poor.
            self._ground.signal(signal.SIGKILL)
            self._ground.move_clock(0.0)
            self._ground.configure(per_day_usd=0.0)
            self._times.give_back("clock", "configuration")

        go_to(days, restarted=True)
        live = self._times.rng.random() < 0.5
        self._times.after(12.0, lambda: go_to(days + 1, restarted=True))
        self._times.after(24.0, lambda: go_to(days, restarted=not live))
        self._times.lasting(f"two days with ${POOR_USD} each", end, 36.0)
