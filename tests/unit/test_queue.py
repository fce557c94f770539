"""Whose turn it is, held against the rule as it reads."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.effects import End
from batchd.records import Cause, HoldKey, Reason, Ref, TaskStatus, TurnFacts


class _Turns:
    """A lifecycle whose tasks start at once when it is their turn,
    and end when the test says so.
    """

    def __init__(self) -> None:
        self.lifecycle = Lifecycle()
        self.queue = self.lifecycle.queue

    def __len__(self) -> int:
        return self.lifecycle.unended

    def add(self, facts: TurnFacts) -> None:
        self.lifecycle.take(inputs.Accepted(facts))

    def take(self, slots: int, crowded: AbstractSet[str] = frozenset()) -> list[Ref]:
        return [self._start(ref) for ref in self.queue.draw(slots, crowded)]

    def take_suspect(self, name: str = "") -> Ref | None:
        ref = self.queue.draw_suspect(name)
        return ref and self._start(ref)

    def take_of(self, name: str, last: Sequence[str] = ()) -> Ref | None:
        ref = self.queue.draw_of(name, last)
        return ref and self._start(ref)

    def _start(self, ref: Ref) -> Ref:
        self.lifecycle.take(inputs.SlotFree(ref))
        return ref

    def put_back(self, ref: Ref) -> None:
        self.lifecycle.take(inputs.SlotFree(ref))
        self.lifecycle.take(inputs.Unready(ref))

    def hold(self, ref: Ref, hold: HoldKey) -> None:
        self.lifecycle.take(inputs.Held(ref, hold))

    def lift(self, ref: Ref, hold: HoldKey) -> None:
        self.lifecycle.take(inputs.Lifted(ref, hold))

    def prioritise(self, ref: Ref, priority: int) -> None:
        self.lifecycle.take(inputs.Reprioritised(ref, priority))

    def release(self, ref: Ref, *, suspect: bool = False) -> None:
        self.lifecycle.take(inputs.Lost(ref))
        self.lifecycle.take(inputs.Settled(ref, suspect))

    def done(self, ref: Ref, status: TaskStatus) -> list[Ref]:
        """End a task, and what can never run then; return the latter."""
        if entry := self.lifecycle.entries.get(ref):
            if entry.phase.has_slot:
                self.lifecycle.take(inputs.Stale(ref))
            else:
                self.lifecycle.take(inputs.GiveUp(End(ref, status, Reason.INTERNAL, "")))
                self.lifecycle.take(inputs.Ended(ref, status))
        effects = self.lifecycle.take(inputs.Published(ref, status))
        doomed = [each.ref for each in effects if isinstance(each, End)]
        for each in doomed:
            self.lifecycle.take(inputs.Ended(each, TaskStatus.CANCELLED))
            assert not self.lifecycle.take(inputs.Published(each, TaskStatus.CANCELLED))
        return doomed


def _queued(name: str, order: int, directory: str = "", **more: Any) -> TurnFacts:
    return replace(
        TurnFacts(Ref("b", name), 0, order, directory or f"/out/b/{name}", (), "p"), **more
    )


def _ref(name: str) -> Ref:
    return Ref("b", name)


def _conflict(one: str, other: str) -> bool:
    return one == other or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _names(facts: TurnFacts) -> set[str]:
    """Return what a task waits for with others: its provider and its model."""
    return {facts.model, facts.model.partition("/")[0]}


@dataclass
class _Naive:
    """The rule of the queue, written down as it reads, with rescans of everything."""

    tasks: dict[Ref, TurnFacts] = field(default_factory=dict)
    unmet: dict[Ref, set[Ref]] = field(default_factory=dict)
    begun: set[Ref] = field(default_factory=set)
    running: set[Ref] = field(default_factory=set)
    suspects: set[Ref] = field(default_factory=set)
    parked: set[str] = field(default_factory=set)
    #: By task: what holds it, beside what it comes after.
    holds: dict[Ref, set[HoldKey]] = field(default_factory=lambda: defaultdict(set))

    def add(self, queued: TurnFacts) -> None:
        self.tasks[queued.ref] = queued
        self.unmet[queued.ref] = set(queued.after)
        if queued.begun or queued.suspect:
            self.begun.add(queued.ref)
        if queued.suspect:
            self.suspects.add(queued.ref)

    def eligible(self) -> list[TurnFacts]:
        ready = [
            q
            for r, q in self.tasks.items()
            if not self.unmet[r] and r not in self.running and not self.holds[r]
        ]
        return sorted(ready, key=lambda q: (-q.priority, q.order))

    def take_this(self, ref: Ref | None, name: str) -> None:
        """Any task of the provider or model that may start will do;
        others may wait for its directory.
        """
        if ref is None:
            return
        queued = self.tasks[ref]
        assert queued in self.eligible()
        assert name in _names(queued)
        assert ref not in self.suspects
        held = [self.tasks[r].directory for r in self.begun]
        assert ref in self.begun or not any(_conflict(queued.directory, d) for d in held)
        self.begun.add(ref)
        self.running.add(ref)

    def take(self, slots: int) -> list[Ref]:
        taken: list[Ref] = []
        waiting: list[str] = []
        for queued in self.eligible():
            if _names(queued) & self.parked:
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
            if queued.ref in self.suspects and not _names(queued) & self.parked:
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

    def done(self, ref: Ref, status: TaskStatus) -> set[Ref]:
        self.remove(ref)
        doomed: set[Ref] = set()
        for other in list(self.tasks):
            if other in self.tasks and ref in self.unmet[other]:
                if status is TaskStatus.COMPLETED:
                    self.unmet[other].discard(ref)
                else:
                    doomed |= {other} | self.done(other, TaskStatus.CANCELLED)
        return doomed


DIRECTORIES = ["/r", "/r/a", "/r/a/x", "/r/a/x/y", "/r/ab", "/r/b", "/r/b/x", "/s", "/s/t", "/u"]


#: Two models of one provider, and a provider with one.
SOURCES = ("p/a", "p/b", "q")


def _random_task(rng: random.Random, order: int, known: list[Ref], naive: _Naive) -> TurnFacts:
    directory = rng.choice([*DIRECTORIES, f"/out/{order}"])
    held = [naive.tasks[r].directory for r in naive.begun]
    begun = rng.random() < 0.1 and not any(_conflict(directory, d) for d in held)
    after = tuple(rng.sample(known, min(len(known), rng.choice([0, 0, 0, 1, 2]))))
    model = rng.choice(SOURCES)
    return TurnFacts(
        Ref("b", str(order)),
        rng.choice([0, 0, 0, 1, 5]),
        order,
        directory,
        after=() if begun else after,
        model=model,
        begun=begun,
        suspect=begun and rng.random() < 0.3,
    )


@pytest.mark.parametrize("seed", range(60))
def test_it_does_what_the_naive_model_does(seed: int) -> None:
    """Whatever happens in whatever order, it picks what the rule picks,
    and no two directories meet.
    """
    rng = random.Random(seed)
    turns, naive = _Turns(), _Naive()
    order = 0
    for _ in range(400):
        known = sorted(naive.tasks)
        running = sorted(naive.running)
        match rng.choice(["add", "add", "take", "take", "done", "done", "release", "rare"]):
            case "add":
                for _ in range(rng.randint(1, 4)):
                    order += 1
                    queued = _random_task(rng, order, known, naive)
                    turns.add(queued)
                    naive.add(queued)
            case "take":
                slots = rng.randint(1, 4)
                assert turns.take(slots) == naive.take(slots)
                if rng.random() < 0.3:
                    assert turns.take_suspect() == naive.take_suspect()
                _hold_back(rng, turns, naive)
            case "done" if running:
                ref = rng.choice(running)
                status = rng.choice([TaskStatus.COMPLETED, TaskStatus.COMPLETED, TaskStatus.ERROR])
                assert set(turns.done(ref, status)) == naive.done(ref, status)
            case "release" if running:
                ref, suspect = rng.choice(running), rng.random() < 0.3
                turns.release(ref, suspect=suspect)
                naive.release(ref, suspect=suspect)
            case "rare" if known:
                _rare(rng, rng.choice(known), turns, naive)
        assert len(turns) == len(naive.tasks)
        held = [naive.tasks[r].directory for r in naive.begun]
        assert not any(_conflict(a, b) for i, a in enumerate(held) for b in held[:i])
    _run_out(turns, naive)


def _hold_back(rng: random.Random, turns: _Turns, naive: _Naive) -> None:
    """Take the best task and give it back, as if nothing had been:
    its directory is free again unless it had begun before.
    """
    if rng.random() < 0.3:
        begun = set(naive.begun)
        drawn = turns.queue.draw(1)
        assert drawn == naive.take(1)
        for ref in drawn:
            assert turns.lifecycle.begins(ref) == (ref not in begun)
            naive.put_back(ref, begun)
            if rng.random() < 0.5:
                hold = _hold(rng, ref)
                turns.hold(ref, hold)
                naive.holds[ref].add(hold)
            else:
                turns.put_back(ref)


def _hold(rng: random.Random, ref: Ref) -> HoldKey:
    return HoldKey.on(ref, rng.choice([Cause.PAUSED, Cause.BUDGET, Cause.TIER]))


def _rare(rng: random.Random, ref: Ref, turns: _Turns, naive: _Naive) -> None:
    provider = rng.choice(["p", *SOURCES])
    match rng.randint(0, 7):
        case 0:
            turns.queue.park(provider)
            naive.parked.add(provider)
        case 1:
            turns.queue.unpark(provider)
            naive.parked.discard(provider)
        case 2:
            assert set(turns.done(ref, TaskStatus.CANCELLED)) == naive.done(
                ref, TaskStatus.CANCELLED
            )
        case 3:
            hold = _hold(rng, ref)
            turns.hold(ref, hold)
            naive.holds[ref].add(hold)
        case 4 if naive.holds:
            held = rng.choice(sorted(naive.holds))
            hold = _hold(rng, held)
            turns.lift(held, hold)
            naive.holds[held].discard(hold)
        case 5:
            priority = rng.choice([0, 2, 7])
            turns.prioritise(ref, priority)
            naive.tasks[ref] = replace(naive.tasks[ref], priority=priority)
        case 6 if provider in naive.parked:
            naive.take_this(turns.take_of(provider), provider)
        case 7 if not any(ref in u for u in naive.unmet.values()):
            assert turns.done(ref, TaskStatus.CANCELLED) == []
            naive.remove(ref)


def _run_out(turns: _Turns, naive: _Naive) -> None:
    """Let all that is left run to its end: nothing starves, nothing is left behind."""
    for provider in ["p", *SOURCES]:
        turns.queue.unpark(provider)
        naive.parked.discard(provider)
    for ref, holds in naive.holds.items():
        for hold in holds:
            turns.lift(ref, hold)
    naive.holds.clear()
    while naive.tasks:
        taken = naive.take(3)
        assert turns.take(3) == taken
        suspect = naive.take_suspect()
        assert turns.take_suspect() == suspect
        assert naive.running, "ready tasks starve"
        for ref in sorted(naive.running):
            naive.done(ref, TaskStatus.COMPLETED)
            assert turns.done(ref, TaskStatus.COMPLETED) == []
    assert len(turns) == 0
    queue = turns.queue
    inside = (queue._lanes, queue._aside, queue._directories._at, queue._directories._below)
    assert not any(inside), "it keeps something of tasks that are gone"


def test_a_waiting_task_is_not_overtaken_by_what_keeps_it_waiting() -> None:
    """A task on a whole tree gets its turn although tasks below the tree keep coming."""
    turns = _Turns()
    turns.add(_queued("leaf", 1, "/r/a"))
    assert turns.take(8) == [_ref("leaf")]
    turns.add(_queued("tree", 2, "/r"))
    turns.add(_queued("late", 3, "/r/b"))
    turns.add(_queued("elsewhere", 4, "/s"))
    assert turns.take(8) == [_ref("elsewhere")]
    turns.done(_ref("leaf"), TaskStatus.COMPLETED)
    assert turns.take(8) == [_ref("tree")]
    turns.done(_ref("tree"), TaskStatus.ERROR)
    assert turns.take(8) == [_ref("late")]


def test_a_parked_provider_keeps_no_other_task_waiting() -> None:
    """Who waits for a directory, but could not run anyway, does not hold the others up."""
    turns = _Turns()
    turns.add(_queued("leaf", 1, "/r/a"))
    turns.take(1)
    turns.add(_queued("tree", 2, "/r", model="q"))
    turns.add(_queued("late", 3, "/r/b"))
    assert turns.take(8) == []
    turns.queue.park("q")
    assert turns.take(8) == [_ref("late")]


def test_a_task_that_has_begun_keeps_its_directory() -> None:
    """A task that was parked,
    drained or lost its worker is not trampled while it waits for a slot.
    """
    turns = _Turns()
    turns.add(_queued("first", 1, "/r"))
    turns.add(_queued("second", 2, "/r", priority=9))
    turns.add(_queued("restored", 3, "/s", begun=True))
    turns.add(_queued("other", 4, "/s/x", priority=9))
    assert turns.take(8) == [_ref("second"), _ref("restored")]
    turns.release(_ref("second"), suspect=True)
    assert turns.take(8) == []
    assert turns.take_suspect() == _ref("second")
    turns.release(_ref("second"))
    assert turns.take(8) == []
    assert turns.take_suspect() == _ref("second")


def test_a_suspect_has_its_turn_by_priority_and_order() -> None:
    """It is due when nothing that is ready is better;
    what is parked, or of a crowded provider, lets it pass.
    """
    turns = _Turns()
    turns.add(_queued("old", 1, model="q"))
    turns.add(_queued("suspect", 2, suspect=True))
    turns.add(_queued("late", 3))
    assert turns.queue.suspect_due() is None
    assert turns.queue.suspect_due({"q"}) == _ref("suspect")
    assert turns.queue.suspect_due({"p", "q"}) is None
    assert turns.take(1) == [_ref("old")]
    assert turns.queue.suspect_due() == _ref("suspect")
    assert turns.lifecycle.precedes(_ref("suspect"), _ref("late"))
    assert not turns.lifecycle.precedes(_ref("suspect"), _ref("old"))
    turns.prioritise(_ref("late"), 5)
    assert turns.queue.suspect_due() is None
    assert not turns.lifecycle.precedes(_ref("suspect"), _ref("late"))
    turns.prioritise(_ref("suspect"), 100)
    assert turns.queue.suspect_due() == _ref("suspect")
    turns.queue.park("p")
    assert turns.queue.suspect_due() is None
    turns.queue.unpark("p")
    assert turns.take_suspect() == _ref("suspect")
    assert turns.queue.suspect_due() is None
    turns.done(_ref("suspect"), TaskStatus.COMPLETED)
    assert not turns.lifecycle.precedes(_ref("suspect"), _ref("late"))


def test_a_failure_dooms_all_that_comes_after_it() -> None:
    """Dependants of a task that did not complete are named, each behind the one it waits for."""
    turns = _Turns()
    turns.add(_queued("c", 3, after=(_ref("b"), _ref("x"))))
    turns.add(_queued("b", 2, after=(_ref("a"),)))
    turns.add(_queued("d", 4, after=(_ref("gone"),)))
    assert turns.take(8) == []
    assert turns.done(_ref("a"), TaskStatus.TIMEOUT) == [_ref("b"), _ref("c")]
    assert turns.done(_ref("b"), TaskStatus.CANCELLED) == []
    assert turns.done(_ref("gone"), TaskStatus.COMPLETED) == []
    assert turns.take(8) == [_ref("d")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("shared", [False, True])
def test_100_000_tasks_are_cheap(shared: bool) -> None:
    """A hundred thousand tasks go in and out without rescans, in one directory or in many."""
    turns = _Turns()
    start = time.process_time()
    for i in range(100_000):
        turns.add(_queued_fast(i, "/repos/one" if shared else f"/srv/spool/outbox/b/{i}"))
    added = time.process_time() - start
    seen = 0
    while refs := turns.take(32):
        seen += len(refs)
        for ref in refs:
            turns.done(ref, TaskStatus.COMPLETED)
    assert seen == 100_000
    # About one second on the machine this was written on; a rescan anywhere would take hours.
    assert time.process_time() - start < 20, added


def _queued_fast(i: int, directory: str) -> TurnFacts:
    return TurnFacts(Ref("b", str(i)), i % 7, i, directory, (), "p")


def test_tasks_of_a_crowded_provider_let_others_pass() -> None:
    """They would wait in their slots; but where no other task can use a slot, they have it."""
    turns = _Turns()
    for order, (name, provider, priority) in enumerate(
        [("a", "slow", 5), ("b", "slow", 5), ("c", "fast", 0), ("d", "fast", 0)]
    ):
        turns.add(
            TurnFacts(
                ref=Ref("b", name),
                priority=priority,
                order=order,
                directory=f"/{name}",
                model=provider,
            )
        )
    assert [ref.task for ref in turns.take(3, {"slow"})] == ["c", "d", "a"]


def test_a_parked_model_keeps_only_its_own_tasks() -> None:
    """Who tries a provider is asked of its models in turn, of parked ones not at all;
    a parked one is tried by itself.
    """
    turns = _Turns()
    for order, name in enumerate(["x1", "x2", "y1", "z1"]):
        turns.add(_queued(name, order, model=f"p/{name[0]}"))
    turns.queue.park("p/x")
    assert turns.take(1) == [_ref("y1")]
    turns.release(_ref("y1"))
    turns.queue.park("p")
    assert turns.take(8) == []
    assert turns.take_of("p", ["p/y"]) == _ref("z1")
    assert turns.take_of("p", ["p/y"]) == _ref("y1")
    assert turns.take_of("p", ["p/y"]) is None
    assert turns.take_of("p/x") == _ref("x1")
    turns.queue.unpark("p/x")
    assert turns.take(8) == []
    turns.queue.unpark("p")
    assert turns.take(8) == [_ref("x2")]
