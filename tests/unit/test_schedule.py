from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from batchd.records import Cause, HoldKey, Ref, Status
from batchd.schedule import Queued, Schedule


def _queued(name: str, order: int, directory: str = "", **more: Any) -> Queued:
    queued = Queued(Ref("b", name), 0, order, directory or f"/out/b/{name}", provider="p")
    return replace(queued, **more)


def _ref(name: str) -> Ref:
    return Ref("b", name)


def _conflict(one: str, other: str) -> bool:
    return one == other or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


@dataclass
class _Naive:
    """The rule of the schedule, written down as it reads, with rescans of everything."""

    tasks: dict[Ref, Queued] = field(default_factory=dict)
    unmet: dict[Ref, set[Ref]] = field(default_factory=dict)
    begun: set[Ref] = field(default_factory=set)
    running: set[Ref] = field(default_factory=set)
    suspects: set[Ref] = field(default_factory=set)
    parked: set[str] = field(default_factory=set)
    #: By task: what holds it, beside what it comes after.
    holds: dict[Ref, set[HoldKey]] = field(default_factory=lambda: defaultdict(set))

    def add(self, queued: Queued) -> None:
        self.tasks[queued.ref] = queued
        self.unmet[queued.ref] = set(queued.after)
        if queued.begun or queued.suspect:
            self.begun.add(queued.ref)
        if queued.suspect:
            self.suspects.add(queued.ref)

    def eligible(self) -> list[Queued]:
        ready = [
            q
            for r, q in self.tasks.items()
            if not self.unmet[r] and r not in self.running and not self.holds[r]
        ]
        return sorted(ready, key=lambda q: (-q.priority, q.order))

    def take_this(self, ref: Ref | None, name: str) -> None:
        """Any task of the provider or model that may start will do; others may wait for its directory."""
        if ref is None:
            return
        queued = self.tasks[ref]
        assert queued in self.eligible()
        assert name in {queued.provider, queued.source}
        assert ref not in self.suspects
        held = [self.tasks[r].directory for r in self.begun]
        assert ref in self.begun or not any(_conflict(queued.directory, d) for d in held)
        self.begun.add(ref)
        self.running.add(ref)

    def take(self, slots: int) -> list[Ref]:
        taken: list[Ref] = []
        waiting: list[str] = []
        for queued in self.eligible():
            if {queued.provider, queued.source} & self.parked:
                continue
            if len(taken) == slots:
                break
            if queued.ref in self.suspects:
                continue
            held = [self.tasks[r].directory for r in self.begun] + waiting
            if queued.ref not in self.begun and any(_conflict(queued.directory, d) for d in held):
                waiting.append(queued.directory)
                continue
            taken.append(queued.ref)
            self.begun.add(queued.ref)
            self.running.add(queued.ref)
        return taken

    def take_suspect(self) -> Ref | None:
        for queued in self.eligible():
            if queued.ref in self.suspects and not {queued.provider, queued.source} & self.parked:
                self.running.add(queued.ref)
                return queued.ref
        return None

    def release(self, ref: Ref, *, suspect: bool) -> None:
        self.running.discard(ref)
        if suspect:
            self.suspects.add(ref)

    def put_back(self, ref: Ref, begun: set[Ref]) -> None:
        self.running.discard(ref)
        self.begun = begun

    def remove(self, ref: Ref) -> None:
        self.tasks.pop(ref, None)
        self.holds.pop(ref, None)
        for refs in (self.begun, self.running, self.suspects):
            refs.discard(ref)

    def done(self, ref: Ref, status: Status) -> set[Ref]:
        self.remove(ref)
        doomed: set[Ref] = set()
        for other in list(self.tasks):
            if other in self.tasks and ref in self.unmet[other]:
                if status is Status.COMPLETED:
                    self.unmet[other].discard(ref)
                else:
                    doomed |= {other} | self.done(other, Status.CANCELLED)
        return doomed


DIRECTORIES = ["/r", "/r/a", "/r/a/x", "/r/a/x/y", "/r/ab", "/r/b", "/r/b/x", "/s", "/s/t", "/u"]


#: Two models of one provider, and a provider with one.
SOURCES = ("p/a", "p/b", "q")


def _random_task(rng: random.Random, order: int, known: list[Ref], naive: _Naive) -> Queued:
    directory = rng.choice([*DIRECTORIES, f"/out/{order}"])
    held = [naive.tasks[r].directory for r in naive.begun]
    begun = rng.random() < 0.1 and not any(_conflict(directory, d) for d in held)
    after = tuple(rng.sample(known, min(len(known), rng.choice([0, 0, 0, 1, 2]))))
    model = rng.choice(SOURCES)
    return Queued(
        Ref("b", str(order)),
        rng.choice([0, 0, 0, 1, 5]),
        order,
        directory,
        after=() if begun else after,
        provider=model.partition("/")[0],
        model=model,
        begun=begun,
        suspect=begun and rng.random() < 0.3,
    )


@pytest.mark.parametrize("seed", range(60))
def test_it_does_what_the_naive_model_does(seed: int) -> None:
    """Whatever happens in whatever order, it picks what the rule picks, and no two directories meet."""
    rng = random.Random(seed)
    schedule, naive = Schedule(), _Naive()
    order = 0
    for _ in range(400):
        known = sorted(naive.tasks)
        running = sorted(naive.running)
        match rng.choice(["add", "add", "take", "take", "done", "done", "release", "rare"]):
            case "add":
                for _ in range(rng.randint(1, 4)):
                    order += 1
                    queued = _random_task(rng, order, known, naive)
                    schedule.add(queued)
                    naive.add(queued)
            case "take":
                slots = rng.randint(1, 4)
                assert schedule.take(slots) == naive.take(slots)
                if rng.random() < 0.3:
                    assert schedule.take_suspect() == naive.take_suspect()
                _hold_back(rng, schedule, naive)
            case "done" if running:
                ref = rng.choice(running)
                status = rng.choice([Status.COMPLETED, Status.COMPLETED, Status.ERROR])
                assert set(schedule.done(ref, status)) == naive.done(ref, status)
            case "release" if running:
                ref, suspect = rng.choice(running), rng.random() < 0.3
                schedule.release(ref, suspect=suspect)
                naive.release(ref, suspect=suspect)
            case "rare" if known:
                _rare(rng, rng.choice(known), schedule, naive)
        assert len(schedule) == len(naive.tasks)
        held = [naive.tasks[r].directory for r in naive.begun]
        assert not any(_conflict(a, b) for i, a in enumerate(held) for b in held[:i])
    _run_out(schedule, naive)


def _hold_back(rng: random.Random, schedule: Schedule, naive: _Naive) -> None:
    """Take the best task and give it back, as if nothing had been: its directory is free again unless it had begun before."""
    if rng.random() < 0.3:
        begun = set(naive.begun)
        taken = schedule.take(1)
        assert taken == naive.take(1)
        for ref in taken:
            assert schedule.begins(ref) == (ref not in begun)
            naive.put_back(ref, begun)
            if rng.random() < 0.5:
                hold = _hold(rng, ref)
                schedule.hold_back(ref, hold)
                naive.holds[ref].add(hold)
            else:
                schedule.put_back(ref)


def _hold(rng: random.Random, ref: Ref) -> HoldKey:
    return HoldKey.on(ref, rng.choice([Cause.PAUSED, Cause.BUDGET, Cause.TIER]))


def _rare(rng: random.Random, ref: Ref, schedule: Schedule, naive: _Naive) -> None:
    provider = rng.choice(["p", *SOURCES])
    match rng.randint(0, 7):
        case 0:
            schedule.park_provider(provider)
            naive.parked.add(provider)
        case 1:
            schedule.unpark_provider(provider)
            naive.parked.discard(provider)
        case 2:
            assert set(schedule.done(ref, Status.CANCELLED)) == naive.done(ref, Status.CANCELLED)
        case 3:
            hold = _hold(rng, ref)
            schedule.hold(ref, hold)
            naive.holds[ref].add(hold)
        case 4 if naive.holds:
            held = rng.choice(sorted(naive.holds))
            hold = _hold(rng, held)
            schedule.lift(held, hold)
            naive.holds[held].discard(hold)
        case 5:
            priority = rng.choice([0, 2, 7])
            schedule.prioritise(ref, priority)
            naive.tasks[ref] = replace(naive.tasks[ref], priority=priority)
        case 6 if provider in naive.parked:
            naive.take_this(schedule.take_of(provider), provider)
        case 7 if not any(ref in u for u in naive.unmet.values()):
            schedule.remove(ref)
            naive.remove(ref)


def _run_out(schedule: Schedule, naive: _Naive) -> None:
    """Let all that is left run to its end: nothing starves, nothing is left behind."""
    for provider in ["p", *SOURCES]:
        schedule.unpark_provider(provider)
        naive.parked.discard(provider)
    for ref, holds in naive.holds.items():
        for hold in holds:
            schedule.lift(ref, hold)
    naive.holds.clear()
    while naive.tasks:
        taken = naive.take(3)
        assert schedule.take(3) == taken
        suspect = naive.take_suspect()
        assert schedule.take_suspect() == suspect
        assert naive.running, "ready tasks starve"
        for ref in sorted(naive.running):
            naive.done(ref, Status.COMPLETED)
            assert schedule.done(ref, Status.COMPLETED) == []
    assert len(schedule) == 0
    inside = (schedule._lanes, schedule._aside, schedule._holds._at, schedule._holds._below)
    assert not any(inside), "it keeps something of tasks that are gone"


def test_a_waiting_task_is_not_overtaken_by_what_keeps_it_waiting() -> None:
    """A task on a whole tree gets its turn although tasks below the tree keep coming."""
    schedule = Schedule()
    schedule.add(_queued("leaf", 1, "/r/a"))
    assert schedule.take(8) == [_ref("leaf")]
    schedule.add(_queued("tree", 2, "/r"))
    schedule.add(_queued("late", 3, "/r/b"))
    schedule.add(_queued("elsewhere", 4, "/s"))
    assert schedule.take(8) == [_ref("elsewhere")]
    schedule.done(_ref("leaf"), Status.COMPLETED)
    assert schedule.take(8) == [_ref("tree")]
    schedule.done(_ref("tree"), Status.ERROR)
    assert schedule.take(8) == [_ref("late")]


def test_a_parked_provider_keeps_nobody_waiting() -> None:
    """Who waits for a directory, but could not run anyway, does not hold the others up."""
    schedule = Schedule()
    schedule.add(_queued("leaf", 1, "/r/a"))
    schedule.take(1)
    schedule.add(_queued("tree", 2, "/r", provider="q"))
    schedule.add(_queued("late", 3, "/r/b"))
    assert schedule.take(8) == []
    schedule.park_provider("q")
    assert schedule.take(8) == [_ref("late")]


def test_a_task_that_has_begun_keeps_its_directory() -> None:
    """A task that was parked, drained or lost its worker is not trampled while it waits for a slot."""
    schedule = Schedule()
    schedule.add(_queued("first", 1, "/r"))
    schedule.add(_queued("second", 2, "/r", priority=9))
    schedule.add(_queued("restored", 3, "/s", begun=True))
    schedule.add(_queued("other", 4, "/s/x", priority=9))
    assert schedule.take(8) == [_ref("second"), _ref("restored")]
    schedule.release(_ref("second"), suspect=True)
    assert schedule.take(8) == []
    assert schedule.take_suspect() == _ref("second")
    schedule.release(_ref("second"))
    assert schedule.take(8) == []
    assert schedule.take_suspect() == _ref("second")


def test_a_suspect_has_its_turn_by_priority_and_order() -> None:
    """It is due when nothing that is ready is better; what is parked, or of a crowded provider, lets it pass."""
    schedule = Schedule()
    schedule.add(_queued("old", 1, provider="q"))
    schedule.add(_queued("suspect", 2, suspect=True))
    schedule.add(_queued("late", 3))
    assert schedule.suspect_due() is None
    assert schedule.suspect_due({"q"}) == _ref("suspect")
    assert schedule.suspect_due({"p", "q"}) is None
    assert schedule.take(1) == [_ref("old")]
    assert schedule.suspect_due() == _ref("suspect")
    assert schedule.precedes(_ref("suspect"), _ref("late"))
    assert not schedule.precedes(_ref("suspect"), _ref("old"))
    schedule.prioritise(_ref("late"), 5)
    assert schedule.suspect_due() is None
    assert not schedule.precedes(_ref("suspect"), _ref("late"))
    schedule.prioritise(_ref("suspect"), 100)
    assert schedule.suspect_due() == _ref("suspect")
    schedule.park_provider("p")
    assert schedule.suspect_due() is None
    schedule.unpark_provider("p")
    assert schedule.take_suspect() == _ref("suspect")
    assert schedule.suspect_due() is None
    schedule.done(_ref("suspect"), Status.COMPLETED)
    assert not schedule.precedes(_ref("suspect"), _ref("late"))


def test_a_failure_dooms_all_that_comes_after_it() -> None:
    """Dependants of a task that did not complete are named, each behind the one it waits for."""
    schedule = Schedule()
    schedule.add(_queued("c", 3, after=(_ref("b"), _ref("x"))))
    schedule.add(_queued("b", 2, after=(_ref("a"),)))
    schedule.add(_queued("d", 4, after=(_ref("gone"),)))
    assert schedule.take(8) == []
    assert schedule.done(_ref("a"), Status.TIMEOUT) == [_ref("b"), _ref("c")]
    assert schedule.done(_ref("b"), Status.CANCELLED) == []
    assert schedule.done(_ref("gone"), Status.COMPLETED) == []
    assert schedule.take(8) == [_ref("d")]


@pytest.mark.parametrize("shared", [False, True])
def test_100_000_tasks_are_cheap(shared: bool) -> None:
    """A hundred thousand tasks go in and out without rescans, in one directory or in many."""
    schedule = Schedule()
    start = time.process_time()
    for i in range(100_000):
        schedule.add(_queued_fast(i, "/repos/one" if shared else f"/srv/spool/outbox/b/{i}"))
    added = time.process_time() - start
    seen = 0
    while refs := schedule.take(32):
        seen += len(refs)
        for ref in refs:
            schedule.done(ref, Status.COMPLETED)
    assert seen == 100_000
    # About one second on the machine this was written on; a rescan anywhere would take hours.
    assert time.process_time() - start < 20, added


def _queued_fast(i: int, directory: str) -> Queued:
    return Queued(Ref("b", str(i)), i % 7, i, directory, (), "p")


def test_tasks_of_a_crowded_provider_let_others_pass() -> None:
    """They would wait in their slots; but where nobody else can use a slot, they have it."""
    schedule = Schedule()
    for order, (name, provider, priority) in enumerate(
        [("a", "slow", 5), ("b", "slow", 5), ("c", "fast", 0), ("d", "fast", 0)]
    ):
        schedule.add(
            Queued(
                ref=Ref("b", name),
                priority=priority,
                order=order,
                directory=f"/{name}",
                provider=provider,
            )
        )
    assert [ref.task for ref in schedule.take(3, {"slow"})] == ["c", "d", "a"]


def test_a_parked_model_keeps_only_its_own_tasks() -> None:
    """Who tries a provider is asked of its models in turn, of parked ones not at all; a parked one is tried by itself."""
    schedule = Schedule()
    for order, name in enumerate(["x1", "x2", "y1", "z1"]):
        schedule.add(_queued(name, order, model=f"p/{name[0]}"))
    schedule.park_provider("p/x")
    assert schedule.take(1) == [_ref("y1")]
    schedule.release(_ref("y1"))
    schedule.park_provider("p")
    assert schedule.take(8) == []
    assert schedule.take_of("p", ["p/y"]) == _ref("z1")
    assert schedule.take_of("p", ["p/y"]) == _ref("y1")
    assert schedule.take_of("p", ["p/y"]) is None
    assert schedule.take_of("p/x") == _ref("x1")
    schedule.unpark_provider("p/x")
    assert schedule.take(8) == []
    schedule.unpark_provider("p")
    assert schedule.take(8) == [_ref("x2")]
