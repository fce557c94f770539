"""Somebody who gives orders at random, and now and then changes his mind."""

from __future__ import annotations

import time
from collections.abc import Callable

from files import LANES
from orders import Order, Orders
from progress import Hindrance
from record import Dropped, Record
from timetable import Timetable

_GIVE_UP_SHARE = 0.25


class Giver:
    """Gives orders about the files of a gust."""

    def __init__(
        self, orders: Orders, times: Timetable, stopped: Callable[[], object | None]
    ) -> None:
        """``stopped``: what names the time for which the daemon is stopped at this moment,
        None where it runs.
        """
        self._stopped = stopped
        self._orders = orders
        self._times = times

    def give(self, record: Record) -> None:
        """Give one order, if there is anything to give it about."""
        batches = [d for d in record.dropped if d.file.promises and d.file.how != "save"]
        if not batches:
            return
        rng = self._times.rng
        dropped = rng.choice(batches)
        batch = dropped.file.batch
        target = rng.choice((batch, f"{batch}/{rng.choice([*dropped.file.ids])}"))
        match rng.choice(("cancel", "retry", "retry", "pause", "pause", "priority", "other")):
            case "cancel":
                dropped.cancelled = True
                self._give("cancel", target)
            case "retry":
                failed = ("--failed",) if rng.random() < 0.3 else ()
                record.reruns.append((batch, self._give("retry", "--yes", *failed, target)))
            case "pause":
                self._pause(batch, target)
            case "priority":
                self._give("priority", target, str(rng.randint(-9, 9)))
            case _:
                self._other(dropped)

    def _other(self, dropped: Dropped) -> None:
        rng = self._times.rng
        ways = (
            ("tune", f"pool.processes={rng.randint(1, 4)}"),
            ("prune", "--yes", "--older-than", "0"),
            ("status",),
            ("logs", dropped.file.batch),
            ("cost",),
        )
        self._give(*rng.choice(ways))

    def _pause(self, batch: str, target: str) -> None:
        """Pause something, and let it go on some time after the order has ended,
        whatever became of it.
        """
        rng = self._times.rng
        provider = rng.choice(sorted({lane.partition("/")[0] for lane in LANES}))
        scope, lanes, batches = rng.choice(
            (
                ((target,), None, {batch}),
                (("--provider", provider), [x for x in LANES if x.startswith(provider)], None),
                (("--all",), None, None),
            )
        )
        hindrance = Hindrance(f"pause {' '.join(scope)}", time.monotonic(), lanes, batches)
        self._times.journal.begin(hindrance)
        seconds = rng.uniform(1, 10)

        def ended(order: Order) -> None:
            self._note_end(order)
            self._times.after(seconds, lambda: self._resume(hindrance, *scope))

        self._give("pause", *scope, ended=ended)

    def _resume(self, hindrance: Hindrance, *scope: str) -> None:
        """Let go on what was paused; again, until batchd says that it does."""

        def ended(order: Order) -> None:
            self._note_end(order)
            # 2 says that nothing is paused by that name, or that the configuration is wrong:
            # then it is not over.
            if order.code == 0 or (order.code == 2 and "config.toml" not in order.output):
                self._times.journal.end(hindrance, time.monotonic())
            else:
                self._times.after(1.0, lambda: self._resume(hindrance, *scope))

        self._orders.give("resume", *scope, ended=ended)

    def _give(self, *arguments: str, ended: Callable[[Order], None] | None = None) -> Order:
        share = _GIVE_UP_SHARE
        stopped = self._stopped()

        def gone(order: Order) -> None:
            order.unheard = stopped is not None and self._stopped() == stopped
            (ended or self._note_end)(order)

        order = self._orders.give(*arguments, give_up_share=share, ended=gone)
        self._times.note(order.text)
        return order

    def _note_end(self, order: Order) -> None:
        said = " ".join(order.output.split())[-150:]
        unheard = " (unheard: the daemon is stopped)" if order.unheard else ""
        self._times.note(f"{order.text} → {order.code}{unheard} {said}")
