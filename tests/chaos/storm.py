"""A storm of outages, clocks, kills, orders, files and disks over a daemon,
and a judge that looks on all the time.

    python tests/chaos/storm.py --minutes 60 --seed 7

It comes in gusts, each with a seed of its own and a few kinds of strikes, and a calm behind each:
then every task must end, and the gust is judged by the model servers' logs and the outbox. All the
time, whatever could move must. Prints what it does and finds, and exits with 1 where something was
wrong. With ``--go-on`` a fault ends its gust alone: the next one has a fresh spool.
``--gust N`` begins with the gust of that number, as it was under that seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import files
from arena import until
from audit import Audit
from ground import Ground, ground
from orders import Orders
from progress import Patience, could_move
from strikes import KINDS, Strikes
from witness import ServerLog, Witness

#: What could move and has not for so long, on a machine that is not busy, is a fault.
PATIENCE_S = 60.0
#: How many times as long it takes on the busiest machine.
_SLOWEST = 4.0
#: How many times as long a calm may last, in which something moves all the time.
_CALM = 5
_TICK_S = 0.2
#: The mean time between two strikes, and between two files.
_STRIKE_S, _FILE_S = 1.2, 1.5
#: … in a gust that is at least so long.
_FULL_S = 30.0
#: Not more tasks at a time than can be done within moments.
_MOST_OPEN = 60
#: The time between two lines about how it goes.
_SAY_S = 20.0


class FaultError(Exception):
    """The daemon has not kept a promise."""


@dataclass
class Figures:
    """What a storm came to."""

    gusts: int = 0
    files: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    orders: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    #: Drafts of files that were saved in place again and again, and how many of them were taken.
    drafts: int = 0
    drafts_taken: int = 0
    #: What was spent on days that had a budget.
    days_usd: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.gusts} gusts, {self.files} files, {self.tasks.total()} tasks {dict(self.tasks)},"
            f" {self.requests} requests, orders {dict(self.orders)}, kills {dict(self.kills)},"
            f" {self.drafts_taken} of {self.drafts} drafts taken, days with a budget"
            f" {[round(usd, 4) for usd in self.days_usd]}, {len(self.faults)} faults"
        )


def limit_s() -> float:
    """Return how long anything may take on this machine at this time,
    that takes an instant on one at rest.
    """
    return PATIENCE_S * min(_SLOWEST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


class Storm:
    """Gusts over one ground, until one of them finds a fault."""

    def __init__(
        self, place: Ground, logs: Sequence[ServerLog], figures: Figures, without: Collection[str]
    ) -> None:
        """``without``: kinds of strikes and of files that are left out."""
        self._ground = place
        self._orders = Orders(place.arena)
        self._strikes = Strikes(place, self._orders, without)
        self._witness = Witness(place.outboxes, logs)
        self._audit = Audit(place, self._witness)
        self._patience = Patience()
        #: The lanes that could move at the last look.
        self._could: frozenset[str] = frozenset()
        self._figures = figures
        #: Requests until the last judgement.
        self._requests = 0
        self._begun = self._said = time.monotonic()

    def gust(self, seed: str, seconds: float) -> None:
        """Let one gust pass, and the calm behind it; raises ``FaultError``.

        A short one is the denser.
        """
        haste = max(1.0, _FULL_S / seconds)
        self._begun = time.monotonic()
        self._strikes.begin(seed)
        rng = random.Random(f"{seed}, moments")
        end = time.monotonic() + seconds
        strike_at = drop_at = 0.0
        while (now := time.monotonic()) < end:
            work = self._tick(now)
            if now >= drop_at:
                if len(work) < _MOST_OPEN:
                    self._strikes.drop()
                drop_at = now + rng.expovariate(haste / _FILE_S)
            if now >= strike_at:
                self._strikes.strike()
                strike_at = now + rng.expovariate(haste / _STRIKE_S)
            time.sleep(_TICK_S / haste)
        # What is held up by nothing that lasts must be done while it lasts.
        while self._could:
            self._tick(time.monotonic())
            time.sleep(_TICK_S)
        self._strikes.times.hurry()
        self._calm()
        self._strikes.monkey.settled()
        self._judge()

    def _calm(self) -> None:
        """Wait until nothing is left to be done; all that lasted has been ended."""
        begun = time.monotonic()
        while (work := self._tick(now := time.monotonic())) or self._busy:
            if now - begun > _CALM * limit_s():
                self._raise([f"after {now - begun:.0f} s of calm: {work}; {self._busy}"])
            time.sleep(_TICK_S)

    @property
    def _busy(self) -> list[str]:
        """What is still to be heard of, or to be done."""
        orders = [order.text for order in self._orders.under_way]
        return orders + ["something waits for its time"] * self._strikes.times.waiting

    def stop(self) -> None:
        """End the daemon as systemd would;
        nothing is left of it, and nothing published has changed.

        Raises ``FaultError``.
        """
        self._ground.arena.stop()
        until(lambda: not self._ground.arena.processes(), 10, self._orphans)
        self._raise(self._witness.changed())

    def close(self) -> None:
        """Kill the orders under way."""
        self._orders.clear()

    def _orphans(self) -> str:
        return f"orphans: {self._ground.arena.processes()}"

    def _tick(self, now: float) -> list[tuple[str, str]]:
        """Look at everything once; return what is still to be done."""
        self._ground.keep_alive(now)
        self._strikes.times.look(now)
        complaints = self._orders.look(now, limit_s())
        moved = self._witness.look(now)
        work = [*self._audit.work(self._strikes.record)]
        self._ground.journal.forget(now)
        self._could = could_move(work, self._ground.journal, now)
        self._patience.look(now, self._could, moved)
        worn = self._patience.worn(limit_s())
        complaints += [
            f"{lane}: could have moved for {stood:.0f} s, and has not; open: "
            f"{sorted({batch for of, batch in work if of == lane})}"
            for lane, stood in worn.items()
        ]
        complaints += [*self._ground.complaints, *self._witness.complaints]
        self._ground.complaints.clear()
        self._witness.complaints.clear()
        if now - self._said > _SAY_S:
            self._said = now
            print(f"  {len(work)} to be done: {self._patience.worn(1.0)}", flush=True)
        self._raise(complaints)
        return work

    def _judge(self) -> None:
        record = self._strikes.record
        # A server writes its log behind its answers.
        time.sleep(_TICK_S)
        self._witness.look(time.monotonic())
        complaints = [*self._audit.complaints(record)]
        self._figures.gusts += 1
        self._figures.files += len(record.dropped)
        self._figures.kills += self._strikes.monkey.counts
        self._figures.orders += Counter(order.arguments[0] for order in self._orders.done)
        self._orders.done.clear()
        requests = sum(map(len, self._witness.asked.values()))
        self._figures.requests += requests - self._requests
        self._requests = requests
        self._figures.tasks += self._audit.statuses(record)
        self._figures.days_usd += self._audit.spent(record).values()
        drafts, taken = self._audit.drafts(record)
        self._figures.drafts += drafts
        self._figures.drafts_taken += taken
        self._audit.close()
        self._raise(complaints)

    def _raise(self, complaints: Sequence[str]) -> None:
        if complaints:
            raise FaultError("\n".join(complaints[:20]))

    def picture(self) -> str:
        """Return how things stand: the gust's journal,
        what batchd says of itself, and the end of its log.
        """
        now = time.monotonic()
        lines = self._ground.journal.tail(now, now - self._begun)
        arena = self._ground.arena
        warnings = [
            line[:500]
            for line in arena.log.read_text("utf-8", "replace").splitlines()
            if '"level":"info"' not in line
        ]
        parts = ("journal:", *lines, "status:", self._status(), "warnings:", *warnings[-30:])
        return "\n".join((*parts, "log:", arena.tail()))

    def _status(self) -> str:
        """Return `batchd status --json`, of the batches those that have not ended."""
        arena = self._ground.arena
        command = arena.command("status", "--json")
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                env=arena.environment,
                check=False,
            )
            status = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            return f"none: {error}"
        status["batches"] = [b for b in status["batches"] if not b["published_at"]]
        return json.dumps(status, indent=1)


def rage(
    folder: Path,
    seed: str,
    seconds: float,
    gust_s: float,
    *,
    first: int = 1,
    go_on: bool = False,
    without: Collection[str] = (),
) -> Figures:
    """Let a storm rage below a folder for some time; return its figures, faults included."""
    folder.chmod(0o755)  # commands run as somebody else
    figures = Figures()
    end = time.monotonic() + seconds
    numbers = itertools.count(first)
    for spool in itertools.count():
        with ground(folder / str(spool)) as (place, logs):
            storm = Storm(place, logs, figures, without)
            name = ""
            try:
                while not name or time.monotonic() < end:
                    name = f"{seed}/{next(numbers)}"
                    storm.gust(name, min(gust_s, max(1.0, end - time.monotonic())))
                    print(f"gust {name}: {figures}", flush=True)
                storm.stop()
            except (FaultError, AssertionError) as fault:
                figures.faults.append(f"gust {name}: {fault}")
                print(f"FAULT in gust {name}: {fault}\n{storm.picture()}", flush=True)
            finally:
                storm.close()
        if time.monotonic() >= end or (figures.faults and not go_on):
            return figures
    raise AssertionError


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=60.0)
    add("--seed", default=str(time.time_ns() % 1_000_000))
    add("--gust-seconds", type=float, default=60.0, help="how long one gust lasts")
    add("--gust", type=int, default=1, help="the number of the first gust")
    add("--go-on", action="store_true", help="after a fault, with a fresh spool")
    kinds = [*KINDS, *(make.__name__ for make in files.KINDS)]
    add("--without", nargs="*", default=[], choices=kinds, help="what is left out")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="batchd-storm-") as folder:
        figures = rage(
            Path(folder),
            options.seed,
            options.minutes * 60,
            options.gust_seconds,
            first=options.gust,
            go_on=options.go_on,
            without=options.without,
        )
    print(figures, *figures.faults, sep="\n\n")
    return min(1, len(figures.faults))


if __name__ == "__main__":
    sys.exit(main())
