"""The lifecycle: its table is complete,
and whatever happens in whatever order, its guarantees hold.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import pytest

from batchd.events import CancelRequested, Suspended
from batchd.lifecycle import Lifecycle, Phase, effects, inputs
from batchd.lifecycle.effects import Effect, End
from batchd.lifecycle.holds import Key
from batchd.lifecycle.table import TABLE
from batchd.records import Cause, HoldKey, Parking, Reason, Ref, Scope, TaskStatus, TurnFacts

#: Inputs that make a task's entry, rather than change it.
_MAKE = {inputs.Accepted, inputs.Unpublished}
_HOLDS = {inputs.Held, inputs.Lifted, inputs.Reprioritised}
_WISHES = {inputs.CancelOrdered, inputs.Halt}

#: The pairs that can come about, by phase:
#: written down a second time, so that no row goes or comes unseen.
_POSSIBLE = {
    Phase.QUEUED: {inputs.SlotFree, inputs.GiveUp, *_WISHES, *_HOLDS},
    Phase.HELD: {inputs.GiveUp, *_WISHES, *_HOLDS},
    Phase.RESERVED: {
        *(inputs.Unready, inputs.Stale, inputs.Dispatched, inputs.Lost),
        *_WISHES,
        *_HOLDS,
    },
    Phase.STARTING: {
        *(inputs.Ready, inputs.Refused, inputs.TurnedAway, inputs.Lost),
        *_WISHES,
        *_HOLDS,
    },
    Phase.RUNNING: {
        *(inputs.Finished, inputs.Confirmed, inputs.Unconfirmed, inputs.GaveBack),
        *(inputs.Broke, inputs.Lost),
        *_WISHES,
        *_HOLDS,
    },
    Phase.STOPPING: {
        *(inputs.Finished, inputs.Confirmed, inputs.Unconfirmed, inputs.GaveBack),
        *(inputs.Broke, inputs.Lost),
        *_WISHES,
        *_HOLDS,
    },
    Phase.SUSPENDED: {inputs.Settled, inputs.Finished, *_WISHES, *_HOLDS},
    Phase.ENDING: {
        *(inputs.Ended, inputs.EndRefused, inputs.Finished, inputs.GiveUp),
        *_WISHES,
        *_HOLDS,
    },
    Phase.ENDED: {inputs.Published, inputs.GiveUp, *_WISHES, *_HOLDS},
    Phase.PUBLISHED: set(),
}
_ALL_INPUTS = set(get_args(inputs.Input))
_PAIRS = [(phase, kind) for phase in Phase for kind in sorted(_ALL_INPUTS - _MAKE, key=str)]


@pytest.mark.parametrize(("phase", "kind"), _PAIRS)
def test_each_pair_has_an_answer_or_cannot_come_about(
    phase: Phase, kind: type[inputs.Input]
) -> None:
    """Of a pair that can come about, the last row has no condition, and all before it have one."""
    rows = TABLE.get((phase, kind), ())
    assert bool(rows) == (kind in _POSSIBLE[phase])
    assert [row.when is None for row in rows] == [False] * (len(rows) - 1) + [True] * bool(rows)


def test_inputs_and_effects_are_values() -> None:
    """All of them are frozen, so that they can be kept, compared and sent."""
    for kind in (*get_args(inputs.Input), *get_args(Effect)):
        assert kind.__struct_config__.frozen, kind
        assert kind.__struct_fields__, kind


#: Tasks that are here at a time: enough to stand in each other's way.
_AT_ONCE = 40


@dataclass
class _World:
    """What is outside: it performs effects in any order, at any time,
    and reports back; and it notes what must hold.
    """

    rng: random.Random
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    #: What is to be done, and what workers have.
    todo: list[Effect] = field(default_factory=list)
    starting: set[Ref] = field(default_factory=set)
    dispatched: set[Ref] = field(default_factory=set)
    workers: set[Ref] = field(default_factory=set)
    #: As the store has it: how each ended.
    ended: dict[Ref, TaskStatus] = field(default_factory=dict)
    after: dict[Ref, tuple[Ref, ...]] = field(default_factory=dict)
    published: Counter[Ref] = field(default_factory=Counter)
    twice: bool = False
    #: Those that were asked to end before they did.
    cancelled: set[Ref] = field(default_factory=set)
    attempts: Counter[Ref] = field(default_factory=Counter)

    def take(self, given: inputs.Input) -> None:
        for effect in self.lifecycle.take(given):
            match effect:
                case effects.Start(ref):
                    assert ref not in self.starting | self.dispatched | self.workers, "two slots"
                    assert all(self.ended.get(r) is TaskStatus.COMPLETED for r in self.after[ref])
                    assert not [*self.lifecycle.why(ref)], "it is parked, and starts"
                    self.starting.add(ref)
                case effects.HandOver(ref):
                    assert ref not in self.workers, "two workers"
                    assert ref not in self.ended, "a task that has ended runs"
                    self.workers.add(ref)
                case effects.Free(ref):
                    assert ref not in self.workers, "a slot is freed under a worker"
                case effects.Stop():
                    pass
                case _:
                    self.todo.append(effect)
        self.starting -= self.dispatched

    def accept(self, number: int) -> None:
        known = sorted(self.after)
        ref = Ref("b", f"{number:06}")
        after = tuple(self.rng.sample(known, min(len(known), self.rng.choice([0, 0, 1, 2]))))
        # Those that have completed are no reason to wait any more;
        # as in the store, one comes after what is there.
        after = tuple(r for r in after if r in self.lifecycle.entries)
        self.after[ref] = after
        directory = self.rng.choice(["/a", "/a/b", "/c", f"/{number}"])
        self.take(inputs.Accepted(TurnFacts(ref, 0, number, directory, after, "p/m")))

    def perform(self) -> None:
        """Do one thing that is to be done, whichever."""
        if not self.todo:
            return
        effect = self.todo.pop(self.rng.randrange(len(self.todo)))
        ref = effect.ref
        match effect:
            case effects.Suspend():
                self.take(inputs.Settled(ref))
            case effects.Recover(counted=counted, alone=alone):
                worn_out = None
                if counted and alone and self.rng.random() < 0.3:
                    worn_out = End(ref, TaskStatus.ERROR, Reason.WORKER_CRASHED, "it died 3 times")
                self.take(inputs.Settled(ref, counted, worn_out))
            case End(status=status, reason=reason):
                entry = self.lifecycle.entries[ref]
                # An order is refused where the store takes nothing;
                # all else is tried until it does.
                if reason is Reason.USER and self.rng.random() < 0.2 and entry.ended is None:
                    self.cancelled.discard(ref)
                    self.take(inputs.EndRefused(ref))
                    return
                self.end(ref, status)
                self.take(inputs.Ended(ref, self.ended[ref]))
            case effects.Publish() | effects.Confirm():
                assert ref in self.ended, "what has not ended is published"
                self.published[ref] += 1
                self.twice |= self.published[ref] > 1
                self.take(inputs.Published(ref, self.ended[ref]))

    def end(self, ref: Ref, status: TaskStatus) -> None:
        """The store takes the first end of a task, and no other."""
        self.ended.setdefault(ref, status)

    def go_on(self) -> None:
        """Let one task that is being started, or that a worker has,
        come a step further, or fail.
        """
        rng = self.rng
        places = [self.starting, self.dispatched, self.workers]
        place = rng.choice(places)
        if not place:
            return
        ref = rng.choice(sorted(place))
        place.discard(ref)
        if place is self.starting:
            self._look(ref)
        elif place is self.dispatched:
            self._prepared(ref)
        else:
            self._work(ref)

    def _look(self, ref: Ref) -> None:
        match self.rng.randint(0, 9):
            case 0 | 1:
                self.take(inputs.Unready(ref))
            case 2 | 3:
                self.take(inputs.Lost(ref))
            case 4:  # what an earlier attempt said last became durable late
                self.cancelled.discard(ref)
                self.end(ref, TaskStatus.COMPLETED)
                self.take(inputs.Stale(ref))
            case _:
                self.attempts[ref] += 1
                self.take(inputs.Dispatched(ref, self.attempts[ref]))
                self.dispatched.add(ref)

    def _prepared(self, ref: Ref) -> None:
        match self.rng.randint(0, 7):
            case 0:
                end = End(ref, TaskStatus.ERROR, Reason.SANDBOX, "its directory is none")
                self.take(inputs.Refused(end))
            case 1:
                self.take(inputs.TurnedAway(ref, Suspended(at=0.0, cause="park")))
            case 2:
                self.take(inputs.Lost(ref))
            case _:
                self.take(inputs.Ready(ref))

    def _work(self, ref: Ref) -> None:
        rng, entry = self.rng, self.lifecycle.entries[ref]
        match rng.randint(0, 5):
            case 0:
                self.take(inputs.Lost(ref, rng.random() < 0.5, rng.random() < 0.5))
            case 1:
                end = End(ref, TaskStatus.ERROR, Reason.INTERNAL, "an error inside batchd")
                self.take(inputs.Broke(end))
            case 2 if entry.wish is not None and entry.ended is None:
                self.take(inputs.GaveBack(ref))
            case 3 if entry.ended is None:
                status = TaskStatus.CANCELLED if entry.cancelled else TaskStatus.COMPLETED
                self.end(ref, status)
                self.take(inputs.Finished(ref, self.ended[ref]))
                self.workers.add(ref)
            case _ if entry.ended is not None:
                self.take(rng.choice([inputs.Confirmed, inputs.Unconfirmed])(ref))
            case _:
                self.workers.add(ref)

    def want(self) -> None:
        """Somebody, or something, wants a task to wait, to stop, to end, or its turn has come."""
        rng = self.rng
        if not self.lifecycle.entries:
            return
        ref = rng.choice(sorted(self.lifecycle.entries))
        entry = self.lifecycle.entries[ref]
        hold = HoldKey(Scope.BATCH, "b", rng.choice([Cause.NEEDS, Cause.FOLDER]))
        match rng.randint(0, 12):
            case 0:
                self.take(inputs.Held(ref, hold))
            case 1 | 2:
                self.take(inputs.Lifted(ref, hold))
            case 3:
                if ref not in self.ended and entry.phase is not Phase.ENDING:
                    self.cancelled.add(ref)
                self.take(inputs.CancelOrdered(ref, CancelRequested(at=0.0, message="enough")))
            case 4:
                self.take(inputs.Halt(ref, Suspended(at=0.0, cause="park")))
            case _:
                self.turn(rng.randint(1, 3))

    def turn(self, slots: int) -> None:
        """Give slots to those whose turn it is."""
        for ref in self.lifecycle.queue.draw(slots):
            self.take(inputs.SlotFree(ref))
        if suspect := self.lifecycle.queue.draw_suspect():
            self.take(inputs.SlotFree(suspect))

    def park(self) -> None:
        """Something is parked, as people or an outage have it, or goes on."""
        rng = self.rng
        key = rng.choice(
            [(Scope.PROVIDER, "p"), (Scope.MODEL, "p/m"), (Scope.BATCH, "b"), *self._one()]
        )
        if key in self.lifecycle.holds:
            self.lifecycle.resume(key)
        else:
            cause = rng.choice([Cause.PAUSED, Cause.DOWN])
            for effect in self.lifecycle.park(
                Parking(scope=key[0], name=key[1], cause=cause, since=0.0)
            ):
                assert isinstance(effect, effects.Stop), effect

    def _one(self) -> Iterator[Key]:
        if self.lifecycle.entries:
            yield Scope.TASK, str(self.rng.choice(sorted(self.lifecycle.entries)))

    def check(self) -> None:
        """What never changes."""
        lifecycle, working = self.lifecycle, []
        entries = lifecycle.entries
        for ref, entry in entries.items():
            assert entry.phase is not Phase.PUBLISHED
            assert (entry.phase is Phase.HELD) <= bool(entry.holds)
            assert not (entry.phase is Phase.QUEUED and entry.holds)
            assert (entry.attempt > 0) >= (ref in self.workers)
            assert not self.published[ref], "it is published, and still here"
            if entry.phase.has_slot:
                working.append(entry.facts.directory)
            for hold in entry.holds:
                # What failed holds for ever those that come after it: they end.
                assert entry.doom or entry.ended or ref in lifecycle.holds.kept(hold)
        counts = Counter(entry.phase for entry in entries.values())
        assert {phase: count for phase, count in lifecycle.counts.items() if count} == counts
        assert lifecycle.of("b") == entries.keys()
        assert len(set(working)) == len(working), "two work in one directory"
        assert not {"/a", "/a/b"} <= set(working), "one works below another"
        assert not self.twice, "a result is published twice"


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_each_task_ends_once(seed: int) -> None:
    """At each of 10,000 steps of orders, outages, starts,
    losses and refusals a task has one slot, one end, and one result.

    What was asked to end never completes after it stopped; what comes after another starts only
    once that completed; no two work in one directory, or one below the other;
    and every view of the map says the same as the map.
    """
    world = _World(random.Random(seed))
    for number in range(10_000):
        match world.rng.randint(0, 10):
            case 0 if number < 9_000 and len(world.lifecycle.entries) < _AT_ONCE:
                world.accept(number)
            case 1 | 2 | 3:
                world.want()
            case 10:
                world.park()
            case 4 | 5 | 6:
                world.go_on()
            case _:
                world.perform()
        world.check()
    _run_out(world)
    assert {*world.after} == {*world.published}, "tasks are lost"
    assert not world.lifecycle.entries
    assert world.cancelled, "nothing was tried"
    assert {world.ended[ref] for ref in world.cancelled} <= {TaskStatus.CANCELLED, TaskStatus.ERROR}


def _run_out(world: _World) -> None:
    """Lift all holds, and let everything come to its end."""
    for parking in world.lifecycle.holds.parkings:
        world.lifecycle.resume((parking.scope, parking.name))
    for _ in range(10_000):
        for ref, entry in sorted(world.lifecycle.entries.items()):
            for hold in [h for h in entry.holds if h.cause is not Cause.DEPENDENCY]:
                world.take(inputs.Lifted(ref, hold))
        world.turn(1000)
        for _ in range(3 * len(world.lifecycle.entries)):
            world.go_on()
            world.perform()
        world.check()
        if not world.lifecycle.entries:
            return


def _facts(ref: Ref, *after: Ref) -> TurnFacts:
    return TurnFacts(ref, 0, int(ref.task), f"/{ref.task}", after, "p/m")


def test_a_cancel_that_meets_a_suspension_ends_the_task() -> None:
    """A cancel that comes just after a task gave its slot back finds it,
    and it ends as cancelled.
    """
    lifecycle, ref = Lifecycle(), Ref("b", "1")
    halt = Suspended(at=1.0, cause="park", message="paused")
    for given in (
        inputs.Accepted(_facts(ref)),
        inputs.SlotFree(ref),
        inputs.Dispatched(ref, 1),
        inputs.Ready(ref),
        inputs.Halt(ref, halt),
        inputs.GaveBack(ref),
        inputs.CancelOrdered(ref, CancelRequested(at=2.0, message="enough")),
    ):
        lifecycle.take(given)
    assert lifecycle.take(inputs.Settled(ref)) == [
        End(ref, TaskStatus.CANCELLED, Reason.USER, "enough")
    ]
    assert lifecycle.entries[ref].phase is Phase.ENDING


def test_two_orders_about_one_task_are_two_wishes() -> None:
    """Where the store refuses the end that the first one made, the second one still has it;
    a single one's is as if it never was.
    """
    lifecycle, ref = Lifecycle(), Ref("b", "1")
    lifecycle.take(inputs.Accepted(_facts(ref)))
    for message in ("the first", "the second"):
        lifecycle.take(inputs.CancelOrdered(ref, CancelRequested(at=1.0, message=message)))
    ends = lifecycle.take(inputs.EndRefused(ref))
    assert ends == [End(ref, TaskStatus.CANCELLED, Reason.USER, "the second")]
    assert lifecycle.take(inputs.EndRefused(ref)) == []
    assert lifecycle.entries[ref].phase is Phase.QUEUED


def test_a_cancel_that_meets_one_that_is_turned_away_ends_it_too() -> None:
    """What is written is what it was turned away with,
    whatever is wished by the time it is written.
    """
    lifecycle, ref = Lifecycle(), Ref("b", "1")
    for given in (
        inputs.Accepted(_facts(ref)),
        inputs.SlotFree(ref),
        inputs.Dispatched(ref, 1),
    ):
        lifecycle.take(given)
    away = Suspended(at=1.0, cause="park", message="its provider is parked")
    found = lifecycle.take(inputs.TurnedAway(ref, away))
    lifecycle.take(inputs.CancelOrdered(ref, CancelRequested(at=2.0, message="enough")))
    assert found == [effects.Free(ref), effects.Suspend(ref, away)]
    assert lifecycle.take(inputs.Settled(ref)) == [
        End(ref, TaskStatus.CANCELLED, Reason.USER, "enough")
    ]


def test_one_whose_cancel_is_refused_ends_with_what_it_comes_after() -> None:
    """What it comes after failed while the order was on its way:
    it would wait for that for ever.
    """
    lifecycle = Lifecycle()
    first, second = Ref("b", "1"), Ref("b", "2")
    lifecycle.take(inputs.Accepted(_facts(first)))
    lifecycle.take(inputs.Accepted(_facts(second, first)))
    lifecycle.take(inputs.CancelOrdered(second, CancelRequested(at=1.0, message="enough")))
    lifecycle.take(inputs.GiveUp(End(first, TaskStatus.ERROR, Reason.AUTH, "no key")))
    lifecycle.take(inputs.Ended(first, TaskStatus.ERROR))
    assert lifecycle.take(inputs.Published(first, TaskStatus.ERROR)) == []
    message = "not started: 1 failed"
    doomed = End(second, TaskStatus.CANCELLED, Reason.DEPENDENCY, message)
    assert lifecycle.take(inputs.EndRefused(second)) == [doomed]


def test_what_comes_after_a_failure_ends_with_it() -> None:
    """All that comes after a failed task, and after that,
    is cancelled at once, with the one that failed named.
    """
    lifecycle = Lifecycle()
    first, second, third, other = (Ref("b", name) for name in ("1", "2", "3", "4"))
    lifecycle.take(inputs.Accepted(_facts(first)))
    lifecycle.take(inputs.Accepted(_facts(second, first)))
    lifecycle.take(inputs.Accepted(_facts(third, second)))
    lifecycle.take(inputs.Accepted(_facts(other)))
    lifecycle.take(inputs.GiveUp(End(first, TaskStatus.ERROR, Reason.AUTH, "no key")))
    assert lifecycle.take(inputs.Ended(first, TaskStatus.ERROR)) == [effects.Publish(first)]
    message = "not started: 1 failed"
    assert lifecycle.take(inputs.Published(first, TaskStatus.ERROR)) == [
        End(second, TaskStatus.CANCELLED, Reason.DEPENDENCY, message),
        End(third, TaskStatus.CANCELLED, Reason.DEPENDENCY, message),
    ]
    assert [*lifecycle.entries] == [second, third, other]
