"""Clocks that are set, and what is shown in their time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from batchd.daemon import writes
from batchd.daemon.troubles import TroubleLog
from batchd.errors import StoreError
from batchd.governor.treasury import Treasury
from batchd.log import Action
from batchd.records import Ref


def test_what_is_dropped_after_a_while_is_not_dropped_by_a_clock_set_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ahead by a year it does not count, set back it does, and it goes on with the time."""
    real, now = time.time, writes.steady_clock()
    assert abs(now() - real()) < 1
    monkeypatch.setattr(time, "time", lambda: real() + 365 * 86400)
    assert abs(now() - real()) < 1
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    assert abs(now() - real() + 86400) < 1


def test_a_clock_that_goes_to_tomorrow_and_back_brings_no_money() -> None:
    """What a day has spent is known when it comes again; another day begins with nothing spent."""
    clock = [86400.0 * 100]
    treasury, ref = Treasury(1.0, lambda: clock[0]), Ref("b", "1")
    treasury.settle(ref, 0.0, 0.75)
    clock[0] += 86400
    (day,) = treasury.purses(ref)
    assert day.could_hold(1.0)
    treasury.settle(ref, 0.0, 0.25)
    clock[0] -= 86400
    (day,) = treasury.purses(ref)
    assert day.spent == 0.75
    clock[0] += 86400
    (day,) = treasury.purses(ref)
    assert day.spent == 0.25


def test_what_the_store_has_for_a_day_counts_whenever_it_comes() -> None:
    """A day that an earlier daemon has paid from is not given again;
    where the store does not know, the page stays.
    """
    clock, booked = [86400.0 * 101], {100: 0.75, 101: 0.0}

    def store(day: int) -> float:
        if day not in booked:
            raise StoreError("it cannot be read")
        return booked[day]

    treasury, ref = Treasury(1.0, lambda: clock[0], store), Ref("b", "1")
    treasury.settle(ref, 0.0, 0.9)
    clock[0] -= 86400
    (day,) = treasury.purses(ref)
    assert day.spent == 0.75
    assert treasury.today() == (100, 1.0)
    booked[100] = 0.5  # not all is durable yet
    clock[0] += 2 * 86400
    (day,) = treasury.purses(ref)
    assert (day.spent, treasury.today()) == (0.75, (100, 1.0)), "tomorrow is not known"
    treasury.settle(ref, 0.0, 0.125)
    booked[102] = 0.0
    assert treasury.today() == (102, 1.0)
    clock[0] -= 2 * 86400
    (day,) = treasury.purses(ref)
    assert day.spent == 0.875


class Lines(list[tuple[str, Action, dict[str, Any]]]):
    """A log that keeps its lines."""

    def error(self, action: Action, **fields: Any) -> None:
        """Keep one."""
        self.append(("error", action, fields))

    def warning(self, action: Action, **fields: Any) -> None:
        """Keep one."""
        self.append(("warning", action, fields))


def test_trouble_of_months_is_few_lines() -> None:
    """A disk that refuses a thousand files a second is reported at once,
    every ten minutes, and when it is over.
    """
    lines, clock = Lines(), [0.0]
    troubles = TroubleLog(lines, lambda: clock[0])
    works = [troubles.trying(Action.OUTBOX_TROUBLE) for _ in range(5)]
    for second in range(1300):
        clock[0] = float(second)
        for file, work in enumerate(works):
            work.failed(OSError(30, "Read-only file system", f"/{file}"))
    assert [level for level, _, _ in lines] == ["error"] * 3
    assert lines[-1][2]["times"] > 6000
    works[0].failed(OSError(28, "No space left on device", "/0"))
    assert len(lines) == 4
    assert [trouble.mend for trouble in troubles.open] == [
        "mount that disk writable again",
        "make room on that disk",
    ]
    for work in works[1:]:
        assert len(lines) == 4
        for _ in range(2):
            work.worked()
    assert len(lines) == 5
    assert lines[-1][0] == "warning"
    assert "works again" in lines[-1][2]["message"]
    with works[3] as work:
        work.failed(OSError(30, "Read-only file system", "/3"))
        assert len(lines) == 6
    with pytest.raises(KeyboardInterrupt), works[0]:
        raise KeyboardInterrupt
    assert troubles.open == ()
    assert "works again" not in str(lines[7:])
