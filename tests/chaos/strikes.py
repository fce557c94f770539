"""What a storm does to a ground, at random: one method for each kind of strike."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Collection

import files
from disks import Disk
from files import LANES, File
from giver import Giver
from ground import Ground
from monkey import KILLS, Monkey
from orders import Orders
from record import Dropped, Record
from sky import Sky
from tampering import Tampering
from timetable import Timetable

#: Kinds of strikes and how often they come.
KINDS = {
    "weather": 30,
    "kill": 20,
    "end": 4,
    "stop": 4,
    "configure": 8,
    "other_outbox": 3,
    "clock": 8,
    "poor_days": 3,
    "order": 40,
    "disk": 8,
}
#: Kills of workers that leave their daemon alive.
_OF_WORKERS = frozenset({"worker", "several workers", "stop worker"})
#: Now and then weather lasts until all is done that it does not concern.
_SPELL_S = 3600.0
#: What a daemon that is asked to end gets.
_END_S = 60.0


class Strikes:
    """Strikes at random."""

    def __init__(self, ground: Ground, orders: Orders, without: Collection[str] = ()) -> None:
        """``without``: kinds of strikes and of files that are left out."""
        self._ground = ground
        self._orders = orders
        self._strikes = sorted(KINDS.keys() - set(without))
        self._makers = {m: n for m, n in files.KINDS.items() if m.__name__ not in without}
        self.times = Timetable(ground.journal)
        self._sky = Sky(ground.models, LANES)
        self._tampering = Tampering(ground, self.times)
        self._giver = Giver(orders, self.times, self._stopped)
        self.record = Record()

    def begin(self, seed: str) -> None:
        """Begin a gust under a seed of its own."""
        self._rng = self.times.rng = self._orders.rng = random.Random(seed)
        self._name = seed.replace("/", "-")
        self._numbers = itertools.count(1)
        self.record = Record()
        model = next(iter(self._ground.models.values()))
        # Each gust has a character: most kinds are left out of it,
        # so that the others are not drowned.
        harm = dict(self._rng.sample(sorted(KILLS.items()), self._rng.randint(1, 4)))
        self.monkey = Monkey(self._ground.arena, model, self._rng.getrandbits(32), harm)
        some = min(len(self._strikes), self._rng.randint(2, 6))
        self._kinds = self._rng.sample(self._strikes, some)
        self.times.note(f"gust {seed}: {', '.join(self._kinds)}; kills: {', '.join(harm)}")

    def strike(self) -> None:
        """Strike once."""
        (kind,) = self._rng.choices(self._kinds, [KINDS[k] for k in self._kinds])
        getattr(self, f"_{kind}")()

    def drop(self) -> None:
        """Drop a file."""
        (make,) = self._rng.choices([*self._makers], [*self._makers.values()])
        file = make(self._rng, f"{self._name}-{next(self._numbers)}")
        self.record.dropped.append(Dropped(file))
        self.times.note(f"drops {file.name!r} ({make.__name__}, {file.how})")
        self._write(file, 0)

    def _write(self, file: File, version: int) -> None:
        """Write a version of a file in its way, and have the next one written later."""
        data = file.versions[version]
        folder = self._ground.arena.folder
        path = folder / "inbox" / os.fsdecode(file.name)
        if file.how == "move":
            (folder / "new").write_bytes(data)
            (folder / "new").rename(path)
        elif file.how == "halves":
            half = path.open("wb", buffering=0)
            half.write(data[: len(data) // 2])

            def rest() -> None:
                half.write(data[len(data) // 2 :])
                half.close()

            self.times.after(self._rng.uniform(0.1, 2.0), rest)
        else:
            path.write_bytes(data)
        if version + 1 < len(file.versions):
            pause_s = self._rng.uniform(0.01, 1.5)
            self.times.after(pause_s, lambda: self._write(file, version + 1))

    # The kinds

    def _weather(self) -> None:
        if found := self._sky.clouds(self._rng):
            what, lanes, felt_s, end = found
            seconds = self._rng.choice((0.0, 0.0, 0.0, _SPELL_S))
            self.times.lasting(what, end, seconds, lanes=lanes, felt_s=felt_s)

    def _kill(self) -> None:
        before = self.monkey.counts.copy()
        self.monkey.strike()
        struck = [*(self.monkey.counts - before)]
        self.record.killed_workers += len(_OF_WORKERS & {*struck})
        self.times.note(f"kills: {', '.join(struck)}")

    def _end(self) -> None:
        self._ground.end_daemon(time.monotonic(), _END_S)

    def _stop(self) -> None:
        """Stop the daemon for longer than any heartbeat may be late,
        as a laptop that sleeps does.
        """
        if not self.times.take("daemon"):
            return
        self._ground.signal(signal.SIGSTOP)

        def end() -> None:
            self._ground.signal(signal.SIGCONT)
            self.times.give_back("daemon")

        self.times.lasting("the daemon is stopped", end)

    def _stopped(self) -> tuple[int, int] | None:
        """Return which stop of which daemon lasts; another daemon would run."""
        stop, daemon = self.times.holder("daemon"), self._ground.arena.daemon
        return None if stop is None or daemon is None else (stop, daemon.pid)

    def _configure(self) -> None:
        self._tampering.configure(self.record)

    def _other_outbox(self) -> None:
        self._tampering.other_outbox(self.record)

    def _clock(self) -> None:
        self._tampering.set_clock()

    def _poor_days(self) -> None:
        self._tampering.poor_days(self.record)

    def _order(self) -> None:
        self._giver.give(self.record)

    def _disk(self) -> None:
        """Fill a disk, or make the outbox's read-only."""
        if not self._ground.disks or not self.times.take("disk"):
            return
        name = self._rng.choice(sorted(self._ground.disks))
        disk = self._ground.disks[name]
        how: Callable[[Disk], bool] = Disk.fill
        if name == "disk-out" and self._rng.random() < 0.4:
            how = Disk.seal
        if not how(disk):
            self.times.give_back("disk")
            return

        def end() -> None:
            disk.heal()
            self.times.give_back("disk")

        self.times.lasting(f"{name}: {how.__name__}", end)
