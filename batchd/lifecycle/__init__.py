"""The lifecycle: where each task stands, whose turn it is, and what follows from what happens to it. Pure.

``Lifecycle`` keeps one map from ``Ref`` to entry; ``table`` has the whole of what is decided about a task, ``queue`` of
whose turn it is. ``inputs`` are what happens, ``effects`` what is to be done: the daemon performs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from batchd.lifecycle import inputs
from batchd.lifecycle.effects import Effect, End
from batchd.lifecycle.entry import Entry, Facts, Phase
from batchd.lifecycle.heads import is_of
from batchd.lifecycle.inputs import Input
from batchd.lifecycle.queue import Queue, rank_of
from batchd.lifecycle.table import decide
from batchd.records import Cause, HoldKey, Reason, Ref, Status

__all__ = ["Entry", "Facts", "Input", "Lifecycle", "Phase", "is_of"]


class Lifecycle:
    """The map of all tasks whose files are not known to be published. For one thread."""

    def __init__(self) -> None:
        self._entries: dict[Ref, Entry] = {}
        #: By task: those that come after it.
        self._dependants: dict[Ref, dict[Ref, None]] = {}
        self._counts: Counter[Phase] = Counter()
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
    def unended(self) -> int:
        """How many tasks may still run."""
        return len(self._entries) - self.ending

    @property
    def ending(self) -> int:
        """How many tasks run no more, and are not known to be published."""
        return self._counts[Phase.ENDING] + self._counts[Phase.ENDED]

    def open(self, ref: Ref) -> bool:
        """Whether a task is here, and may still run."""
        entry = self._entries.get(ref)
        return entry is not None and entry.phase.open

    def ended(self, ref: Ref) -> bool:
        """Whether a task's end is durable."""
        entry = self._entries.get(ref)
        return entry is None or entry.ended is not None

    def refs(self, name: str = "", *, waiting: bool = False) -> list[Ref]:
        """Return the tasks that may still run, of one provider, of one model or all; ``waiting``: those without a slot."""
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
        return {entry.facts.model for entry in self._entries.values() if entry.phase.open}

    def suspect(self, ref: Ref) -> bool:
        """Whether a task must run in a process of its own."""
        entry = self._entries.get(ref)
        return entry is not None and entry.suspect

    def begins(self, ref: Ref) -> bool:
        """Whether a task that was drawn had never begun before."""
        entry = self._entries.get(ref)
        return entry is not None and entry.begins

    def precedes(self, one: Ref, other: Ref) -> bool:
        """Whether one task is better than another by priority, then order; False where one of them is not here."""
        ours, theirs = self._entries.get(one), self._entries.get(other)
        return ours is not None and theirs is not None and rank_of(ours) < rank_of(theirs)

    # What happens to them

    def take(self, given: Input) -> list[Effect]:
        """Take an input; return what is to be done. Raises ``ValueError`` for one that cannot come about."""
        entry = self._entries.get(given.ref)
        if entry is None:
            return self._arrived(given)
        effects = self._follow(entry, given)
        if isinstance(given, inputs.Published):
            del self._entries[given.ref]
            self._counts[Phase.PUBLISHED] -= 1
            effects += self._after(given)
        return effects

    def _arrived(self, given: Input) -> list[Effect]:
        """Take an input about a task that is not here."""
        match given:
            case inputs.Accepted():
                self._accept(given.facts)
            case inputs.Unpublished():
                self._add(Entry(facts=Facts(given.ref, 0, 0, ""), phase=Phase.ENDED))
            case inputs.Published():
                return self._after(given)
        return []  # it is published: what was wanted of it came late

    def _follow(self, entry: Entry, given: Input) -> list[Effect]:
        """Have a task's entry follow an input."""
        given.note(entry)
        before = entry.phase
        entry.phase, effects = decide(entry, given)
        if entry.phase is not before:
            self._counts[before] -= 1
            self._counts[entry.phase] += 1
        self._moved(entry, given)
        return effects

    def _accept(self, facts: Facts) -> None:
        after = tuple(HoldKey.on(ref, Cause.DEPENDENCY) for ref in facts.after)
        phase = Phase.HELD if after else Phase.QUEUED
        entry = Entry(facts=facts, phase=phase, holds=after, suspect=facts.suspect)
        for ref in facts.after:
            self._dependants.setdefault(ref, {})[facts.ref] = None
        self._add(entry)
        if facts.begun or facts.suspect:
            self.queue.occupy(entry)
        if entry.phase is Phase.QUEUED:
            self.queue.enter(entry)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.ref] = entry
        self._counts[entry.phase] += 1

    def _moved(self, entry: Entry, given: Input) -> None:
        """Have the queue follow."""
        phase = entry.phase
        if phase is not Phase.QUEUED:
            self.queue.leave(entry)
        if phase is Phase.QUEUED or phase is Phase.HELD:
            entry.attempt, entry.wish = 0, None
            if isinstance(given, inputs.FolderShut) or entry.drawn:
                self.queue.put_back(entry)
            elif isinstance(given, inputs.Prioritised):
                self.queue.leave(entry)
            if phase is Phase.QUEUED and entry.lane is None:
                self.queue.enter(entry)
        elif phase is Phase.RESERVED:
            entry.drawn = False
        elif phase is Phase.ENDED:
            self.queue.vacate(entry)

    def _after(self, published: inputs.Published) -> list[Effect]:
        """Return what a task's published end brings about for those that come after it, and after those."""
        return [effect for each in self._concerned(published) for effect in self.take(each)]

    def _concerned(self, published: inputs.Published) -> Iterator[Input]:
        first, status = published.ref, published.status
        if status is Status.COMPLETED:
            for ref in self._dependants.pop(first, ()):
                yield inputs.Lifted(ref, HoldKey.on(first, Cause.DEPENDENCY))
            return
        message = f"it comes after {first.task}, which ended as {status}"
        failed = [first]
        for each in failed:
            for ref in self._dependants.pop(each, ()):
                entry = self._entries.get(ref)
                if entry is not None and entry.ended is None:
                    yield inputs.GiveUp(End(ref, Status.CANCELLED, Reason.DEPENDENCY, message))
                    failed.append(ref)
