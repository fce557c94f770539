"""What counts as a stall, on a clock of the test's own."""

from __future__ import annotations

from batchd.daemon.active import ActiveAttempt
from batchd.daemon.self_check import Movable, StallTally, at_work
from batchd.records import Ref


def _task(state: str = "queued", may_s: float = 60.0) -> Movable:
    return Movable("b/001", state, may_s)


def test_what_could_move_at_every_look_for_a_minute_has_stalled() -> None:
    """It is returned from then on, at each look, until it moves."""
    tally, task = StallTally(), _task()
    looks = [tally.look([task], 10.0) for _ in range(9)]
    assert looks == [[]] * 7 + [[task]] * 2
    assert tally.look([_task("running")], 10.0) == []
    assert tally.look([], 10.0) == []


def test_what_could_not_move_at_one_look_begins_again() -> None:
    """A task that is held for a moment has a minute from then on."""
    tally, task = StallTally(), _task()
    for _ in range(6):
        assert tally.look([task], 10.0) == []
    assert tally.look([], 10.0) == []
    assert [tally.look([task], 10.0) for _ in range(7)] == [[]] * 7


def test_each_thing_has_its_own_time() -> None:
    """A call that may take ten minutes has stalled after these."""
    tally, call = StallTally(), _task(may_s=600.0)
    assert [bool(tally.look([call], 10.0)) for _ in range(62)] == [False] * 61 + [True]


def test_time_in_which_nothing_ran_does_not_count() -> None:
    """After an hour in which the daemon was stopped, a task still has its minute."""
    tally, task = StallTally(), _task()
    assert tally.look([task], 10.0) == []
    assert tally.look([task], 3600.0) == []
    assert tally.look([task], 10.0) == []


def test_a_lease_that_is_waited_for_is_no_stall() -> None:
    """However long it is: until it is over,
    a machine that is not reached may still change the task's directory.
    """
    active = ActiveAttempt(Ref("b", "001"), worker=None, attempt=1)  # type: ignore[arg-type]
    before_s = at_work(active).may_s
    active.fences("node7", 605.0)
    assert at_work(active).may_s == before_s + 605.0
    assert (active.step, active.detail) == ("waiting", "the lease of node7")
