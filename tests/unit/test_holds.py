"""Every reason to wait is a hold: which tasks it keeps,
what people see of it, and that it is lifted as a whole.
"""

from __future__ import annotations

from batchd.lifecycle import Lifecycle, Phase, inputs
from batchd.lifecycle.effects import End, Stop
from batchd.lifecycle.holds import ALL, DAY
from batchd.lifecycle.trials import Trials
from batchd.records import Cause, HoldKey, Parking, Reason, Ref, Scope, TaskStatus, TurnFacts

A, B, C = Ref("x", "a"), Ref("x", "b"), Ref("y", "c")
SHUT = HoldKey(Scope.BATCH, "x", Cause.FOLDER)


def _lifecycle() -> Lifecycle:
    """Return three tasks in two batches, of two models of one provider."""
    lifecycle = Lifecycle()
    for order, (ref, model) in enumerate(((A, "p/m"), (B, "p/n"), (C, "p/m"))):
        lifecycle.take(inputs.Accepted(TurnFacts(ref, 0, order, f"/{ref}", (), model)))
    return lifecycle


def _parking(scope: Scope, name: str, cause: Cause = Cause.PAUSED) -> Parking:
    return Parking(scope=scope, name=name, cause=cause, message=f"{cause}", since=1.0)


def _run(lifecycle: Lifecycle, ref: Ref) -> None:
    """Bring a task to a worker."""
    assert ref in lifecycle.queue.draw(9)
    for given in (inputs.SlotFree(ref), inputs.Dispatched(ref, 1), inputs.Ready(ref)):
        lifecycle.take(given)


def _causes(lifecycle: Lifecycle, ref: Ref) -> list[Cause]:
    return [parking.cause for parking in lifecycle.why(ref)]


def test_a_hold_keeps_those_that_it_was_given_and_is_lifted_as_a_whole() -> None:
    """Others start meanwhile; a task that two holds keep waits for both."""
    lifecycle = _lifecycle()
    for ref in (B, A):
        lifecycle.take(inputs.Held(ref, SHUT))
    lifecycle.take(inputs.Held(A, HoldKey.on(A, Cause.BUDGET)))
    assert lifecycle.holds.kept(SHUT) == (B, A)
    assert lifecycle.queue.draw(9) == [C]
    assert lifecycle.lift(SHUT) == (B, A)
    assert not lifecycle.holds.keeps(SHUT)
    assert lifecycle.queue.draw(9) == [B]
    lifecycle.lift(HoldKey.on(A, Cause.BUDGET))
    assert lifecycle.queue.draw(9) == [A]


def test_a_task_that_is_published_is_kept_by_nothing() -> None:
    """What has left the map is in no hold, no batch,
    and not among those that gave their slot back.
    """
    lifecycle = _lifecycle()
    _run(lifecycle, C)
    for given in (
        inputs.GaveBack(C),
        inputs.Settled(C, given_back=True),
        inputs.Held(C, HoldKey(Scope.BATCH, "y", Cause.PAUSED)),
    ):
        lifecycle.take(given)
    assert lifecycle.given_back == 1
    lifecycle.take(inputs.GiveUp(End(C, TaskStatus.ERROR, Reason.AUTH, "no key")))
    lifecycle.take(inputs.Ended(C, TaskStatus.ERROR))
    lifecycle.take(inputs.Published(C, TaskStatus.ERROR))
    assert not lifecycle.holds.keeps(HoldKey(Scope.BATCH, "y", Cause.PAUSED))
    assert (lifecycle.of("y"), lifecycle.given_back, lifecycle.requeued()) == (set(), 0, [])


def test_a_parking_concerns_what_its_scope_says() -> None:
    """Everything, a provider, a model, a batch or a task;
    it is taken back by its scope and name, for all its causes or some.
    """
    for scope, name, free in (
        (Scope.PROVIDER, "p", []),
        (Scope.MODEL, "p/m", [B]),
        (Scope.BATCH, "x", [C]),
        (Scope.TASK, "x/b", [A, C]),
    ):
        lifecycle = _lifecycle()
        lifecycle.park(_parking(scope, name))
        waiting = [ref for ref in (A, B, C) if ref not in free]
        assert [ref for ref in (A, B, C) if _causes(lifecycle, ref)] == waiting
        assert lifecycle.queue.draw(9) == free
        (taken,) = lifecycle.resume((scope, name))
        assert (taken.scope, taken.name) == (scope, name)
        assert lifecycle.queue.draw(9) == waiting
        assert lifecycle.holds.parkings == ()
    lifecycle = _lifecycle()
    lifecycle.park(_parking(*ALL))
    assert ALL in lifecycle.holds
    assert all(_causes(lifecycle, ref) for ref in (A, B, C))


def test_two_causes_of_one_scope_end_one_by_one() -> None:
    """What somebody paused waits on once its outage is over;
    of outages a provider has one at a time.
    """
    lifecycle = _lifecycle()
    for cause in (Cause.PAUSED, Cause.DOWN, Cause.AUTH):
        lifecycle.park(_parking(Scope.PROVIDER, "p", cause))
    assert _causes(lifecycle, A) == [Cause.PAUSED, Cause.AUTH]
    assert [p.cause for p in lifecycle.resume((Scope.PROVIDER, "p"), keep=[Cause.PAUSED])] == [
        Cause.AUTH
    ]
    assert lifecycle.queue.draw(9) == []
    lifecycle.resume((Scope.PROVIDER, "p"))
    assert len(lifecycle.queue.draw(9)) == 3


def test_a_pause_stops_what_runs_and_an_outage_does_not() -> None:
    """Calls under way show how an outage goes; what people pause gives its slot back."""
    lifecycle = _lifecycle()
    _run(lifecycle, A)
    assert lifecycle.park(_parking(Scope.PROVIDER, "p", Cause.DOWN)) == []
    assert lifecycle.park(_parking(*DAY, Cause.BUDGET)) == []
    assert lifecycle.park(_parking(Scope.BATCH, "x")) == [Stop(A)]


def test_what_gave_its_slot_back_is_requeued_once_nothing_that_is_parked_keeps_it() -> None:
    """It counts as parked until then; what starts again is not among them."""
    lifecycle = _lifecycle()
    _run(lifecycle, A)
    lifecycle.park(_parking(Scope.PROVIDER, "p", Cause.DOWN))
    lifecycle.take(inputs.GaveBack(A))
    lifecycle.take(inputs.Settled(A, given_back=True))
    assert (lifecycle.given_back, lifecycle.requeued()) == (1, [])
    lifecycle.resume((Scope.PROVIDER, "p"))
    assert lifecycle.requeued() == [A]
    assert (lifecycle.given_back, lifecycle.requeued()) == (0, [])
    assert lifecycle.entries[A].phase is Phase.QUEUED


def test_a_task_that_tried_in_vain_waits_for_what_it_tried() -> None:
    """Also where that is not its own model, as a judge's:
    it says so, and others try before it does again.
    """
    lifecycle = _lifecycle()
    trials = Trials(lifecycle)
    lifecycle.park(_parking(Scope.MODEL, "q/judge", Cause.GONE))
    trials.hold("q/judge", A)
    assert _causes(lifecycle, A) == [Cause.GONE]
    assert lifecycle.queue.draw(9) == [B, C]
    trials.begin("q/judge")
    assert trials.pick(alone=False) is None, "it is the model of no task"
    assert lifecycle.queue.draw(9) == [A], "so that the one that waits for it tries again"
