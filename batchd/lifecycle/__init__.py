"""The lifecycle: where each task stands, what it waits for,
whose turn it is, and what follows from what happens.

Pure.

``Lifecycle`` keeps one map from ``Ref`` to entry; ``table`` has the whole of what is decided about
a task, ``holds`` what keeps tasks from starting, ``queue`` and ``trials`` whose turn it is.
``inputs`` are what happens, ``effects`` what is to be done: the daemon performs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set as AbstractSet
from types import MappingProxyType

from msgspec.structs import replace

from batchd.events import Suspended
from batchd.lifecycle import inputs
from batchd.lifecycle.effects import Effect, End
from batchd.lifecycle.entry import Entry as Entry, Phase as Phase
from batchd.lifecycle.holds import Holds, Key, needs
from batchd.lifecycle.inputs import Input as Input
from batchd.lifecycle.queue import Queue, is_of as is_of, rank_of
from batchd.lifecycle.table import decide
from batchd.records import (
    Cause,
    HoldKey,
    Parking,
    Place,
    Reason,
    Ref,
    Scope,
    TaskStatus,
    TurnFacts,
    untiered,
)
from batchd.records.tasks import ANYWHERE

#: What is said of a task that did not complete, to those that come after it.
_DID_NOT = {
    TaskStatus.TIMEOUT: "was not accepted or over a limit",
    TaskStatus.ERROR: "failed",
    TaskStatus.CANCELLED: "was cancelled",
}
_NONE: frozenset[Ref] = frozenset()


class Lifecycle:
    """The map of all tasks whose files are not known to be published. For one thread."""

    def __init__(self) -> None:
        self._entries: dict[Ref, Entry] = {}
        #: The same tasks by batch.
        self._batches: dict[str, set[Ref]] = {}
        #: Tasks with the status ``parked``: they have begun, and gave their slot back.
        self._given_back: dict[Ref, None] = {}
        self._counts: Counter[Phase] = Counter()
        #: What keeps tasks from starting.
        self.holds = Holds()
        #: Whose turn it is.
        self.queue = Queue(self._entries)

    # How tasks stand

    @property
    def entries(self) -> Mapping[Ref, Entry]:
        """Every task that is here, to look at."""
        return MappingProxyType(self._entries)

    @property
    def counts(self) -> Mapping[Phase, int]:
        """How many tasks are in each phase."""
        return MappingProxyType(self._counts)

    @property
    def waiting(self) -> int:
        """How many tasks have no slot, and may get one."""
        return self._counts[Phase.QUEUED] + self._counts[Phase.HELD]

    @property
    def startable(self) -> int:
        """How many tasks only wait for a slot; one where that is not sure:
        a suspect, or one that tries a provider, needs one too.
        """
        return self._counts[Phase.QUEUED] if self.queue.next() else min(1, self.waiting)

    @property
    def unended(self) -> int:
        """How many tasks may still run."""
        return len(self._entries) - self.ending

    @property
    def ending(self) -> int:
        """How many tasks run no more, and are not known to be published."""
        return self._counts[Phase.ENDING] + self._counts[Phase.ENDED]

    @property
    def given_back(self) -> int:
        """How many tasks have begun, and wait without a slot."""
        return sum(self._entries[ref].phase.waits for ref in self._given_back)

    def of(self, batch: str) -> AbstractSet[Ref]:
        """Return the tasks of a batch that are here."""
        return self._batches.get(batch, _NONE)

    def open(self, ref: Ref) -> bool:
        """Whether a task is here, and may still run."""
        entry = self._entries.get(ref)
        return entry is not None and entry.phase.open

    def ended(self, ref: Ref) -> bool:
        """Whether a task's end is durable."""
        entry = self._entries.get(ref)
        return entry is None or entry.ended is not None

    def refs(self, name: str = "", *, waiting: bool = False) -> list[Ref]:
        """Return the tasks that may still run, of one provider,
        of one model or all; ``waiting``: those without a slot.
        """
        return [
            ref
            for ref, entry in self._entries.items()
            if (not name or is_of(entry.facts.model, name))
            and (entry.phase.waits if waiting else entry.phase.open)
        ]

    def model(self, ref: Ref) -> str:
        """Return the model of a task, ``PROVIDER/MODEL``; empty for one that is not here."""
        entry = self._entries.get(ref)
        return entry.facts.model if entry else ""

    def models(self) -> set[str]:
        """Return the models of all tasks that may still run."""
        return {untiered(e.facts.model) for e in self._entries.values() if e.phase.open}

    def sell_as(self, ref: Ref, name: str) -> None:
        """Note at which service tier a task asks its model, now that this waits by itself:
        ``PROVIDER/MODEL@TIER``. One that was drawn is put back.
        """
        entry = self._entries[ref]
        self.queue.leave(entry)
        if entry.drawn:
            self.queue.put_back(entry)
        entry.facts = replace(entry.facts, model=name)
        if entry.phase is Phase.QUEUED:
            self.queue.enter(entry)

    def place_of(self, ref: Ref) -> Place:
        """Return what a task asks of its worker; nothing for one that is not here."""
        entry = self._entries.get(ref)
        if entry is None:
            return ANYWHERE
        provider = untiered(entry.facts.model).partition("/")[0]
        return Place(entry.facts.machine, (provider,))

    def suspect(self, ref: Ref) -> bool:
        """Whether a task must run in a process of its own."""
        entry = self._entries.get(ref)
        return entry is not None and entry.suspect

    def begins(self, ref: Ref) -> bool:
        """Whether a task that was drawn had never begun before."""
        entry = self._entries.get(ref)
        return entry is not None and entry.begins

    def precedes(self, one: Ref, other: Ref) -> bool:
        """Whether one task is better than another by priority, then order;
        False where one of them is not here.
        """
        ours, theirs = self._entries.get(one), self._entries.get(other)
        return ours is not None and theirs is not None and rank_of(ours) < rank_of(theirs)

    # What they wait for

    def why(self, ref: Ref) -> Iterator[Parking]:
        """Yield what is parked that a task waits for; none for one that is not here."""
        entry = self._entries.get(ref)
        return self.holds.of(ref, entry.facts.model, entry.holds) if entry else iter(())

    def needs(self, ref: Ref) -> Iterator[Key]:
        """Yield what a task waits for where that is parked."""
        entry = self._entries.get(ref)
        return needs(ref, entry.facts.model, entry.holds) if entry else iter(())

    def concerned(self, scope: Scope, name: str) -> list[Ref]:
        """Return the tasks of a scope that may still run."""
        if scope in {Scope.BATCH, Scope.TASK}:
            return [ref for ref in self._held_by(scope, name) if self.open(ref)]
        return self.refs(name if scope.asked else "")

    def park(self, parking: Parking) -> list[Effect]:
        """Keep what a parking concerns from starting;
        return how what runs stops, where somebody wants it to wait.
        """
        scope, name, cause = parking.key
        self.holds.enter(parking)
        if scope.asked:
            self.queue.park(name)
        for ref in self._held_by(scope, name):
            self.take(inputs.Held(ref, parking.key))
        if cause.reason or scope is Scope.DAY:
            return []
        wish = Suspended(at=parking.since, cause="park", message=parking.message)
        running = [r for r in self.concerned(scope, name) if self._entries[r].phase.has_slot]
        return [effect for ref in running for effect in self.take(inputs.Halt(ref, wish))]

    def _held_by(self, scope: Scope, name: str) -> Iterable[Ref]:
        """Return the tasks that a parking keeps by a hold: those, too, whose end may be refused."""
        if scope is Scope.BATCH:
            return self.of(name)
        return (Ref(*name.split("/", 1)),) if scope is Scope.TASK else ()

    def resume(self, key: Key, keep: Iterable[Cause] = ()) -> tuple[Parking, ...]:
        """Take a parking back, those causes apart that are in ``keep``;
        return what was taken back.
        """
        struck = self.holds.strike(key, keep)
        for parking in struck:
            self.lift(parking.key)
        scope, name = key
        if scope.asked and key not in self.holds:
            self.queue.unpark(name)
        return struck

    def lift(self, hold: HoldKey) -> tuple[Ref, ...]:
        """Let all tasks go that a hold keeps, as far as it goes; return them."""
        refs = self.holds.kept(hold)
        for ref in refs:
            self.take(inputs.Lifted(ref, hold))
        return refs

    def requeued(self) -> list[Ref]:
        """Return the tasks that gave their slot back and wait
        for nothing any more, which is noted by that.
        """
        free = [ref for ref in self._given_back if next(self.why(ref), None) is None]
        for ref in free:
            del self._given_back[ref]
        return free

    # What happens to them

    def take(self, given: Input) -> list[Effect]:
        """Take an input; return what is to be done.

        Raises ``ValueError`` for one that cannot come about.
        """
        entry = self._entries.get(given.ref)
        if entry is None:
            match given:
                case inputs.Accepted():
                    self._accept(given.facts)
                case inputs.Unpublished():
                    self._add(Entry(facts=TurnFacts(given.ref, 0, 0, ""), phase=Phase.ENDED))
                case inputs.Published():
                    return self._after(given)
            return []  # it is published: what was wanted of it came late
        effects = self._follow(entry, given)
        if isinstance(given, inputs.Published):
            ref = entry.ref
            del self._entries[ref]
            self._counts[entry.phase] -= 1
            for hold in entry.holds:
                self.holds.remove(hold, ref)
            self._given_back.pop(ref, None)
            left = self._batches[ref.batch]
            left.discard(ref)
            if not left:
                del self._batches[ref.batch]
            effects += self._after(given)
        return effects

    def _follow(self, entry: Entry, given: Input) -> list[Effect]:
        """Decide what follows from an input, and move the task's entry."""
        given.note(entry)
        before = entry.phase
        entry.phase, effects = decide(entry, given)
        if entry.phase is not before:
            self._counts[before] -= 1
            self._counts[entry.phase] += 1
        if entry.phase is Phase.ENDING and effects:
            entry.wish = None  # it is being carried out: a later one is another order's
        if isinstance(given, inputs.Held):
            self.holds.add(given.hold, given.ref)
        elif isinstance(given, inputs.Lifted):
            self.holds.remove(given.hold, given.ref)
        phase = entry.phase
        if phase is not Phase.QUEUED:
            self.queue.leave(entry)
        if phase is Phase.QUEUED or phase is Phase.HELD:
            entry.attempt, entry.wish = 0, None
            if isinstance(given, inputs.Unready) or entry.drawn:
                self.queue.put_back(entry)
            elif isinstance(given, inputs.Settled) and given.given_back:
                self._given_back[entry.ref] = None
            elif isinstance(given, inputs.Reprioritised):
                self.queue.leave(entry)
            if phase is Phase.QUEUED and entry.lane is None:
                self.queue.enter(entry)
        elif phase is Phase.RESERVED:
            entry.drawn = False
        elif phase is Phase.STARTING:
            self._given_back.pop(entry.ref, None)
        elif phase is Phase.ENDED:
            self.queue.vacate(entry)
        return effects

    def _accept(self, facts: TurnFacts) -> None:
        holds = tuple(self.holds.on(facts.ref, facts.after))
        phase = Phase.HELD if holds else Phase.QUEUED
        entry = Entry(facts=facts, phase=phase, holds=holds, suspect=facts.suspect)
        for hold in holds:
            self.holds.add(hold, facts.ref)
        self._add(entry)
        if facts.given_back:
            self._given_back[facts.ref] = None
        if facts.begun or facts.suspect:
            self.queue.occupy(entry)
        if entry.phase is Phase.QUEUED:
            self.queue.enter(entry)

    def _add(self, entry: Entry) -> None:
        ref = entry.ref
        self._entries[ref] = entry
        self._counts[entry.phase] += 1
        self._batches.setdefault(ref.batch, set()).add(ref)

    def _after(self, published: inputs.Published) -> list[Effect]:
        """Return what a task's published end brings about
        for those that come after it, and after those.
        """
        return [effect for each in self._concerned(published) for effect in self.take(each)]

    def _concerned(self, published: inputs.Published) -> Iterator[Input]:
        first, status = published.ref, published.status
        if status is TaskStatus.COMPLETED:
            hold = HoldKey.on(first, Cause.DEPENDENCY)
            yield from (inputs.Lifted(ref, hold) for ref in self.holds.kept(hold))
            return
        message = f"not started: {first.task} {_DID_NOT[status]}"
        failed = [first]
        for each in failed:
            for ref in self.holds.forget(HoldKey.on(each, Cause.DEPENDENCY)):
                if self._entries[ref].ended is None:
                    yield inputs.GiveUp(End(ref, TaskStatus.CANCELLED, Reason.DEPENDENCY, message))
                    failed.append(ref)
