"""The lifecycle: where each task stands, and what follows from what happens to it. Pure.

``Lifecycle`` keeps one map from ``Ref`` to entry; ``table`` has the whole of what is decided. For now it is a shadow: the
daemon's own classes decide, it is fed what they do, and the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from batchd.lifecycle import inputs
from batchd.lifecycle.effects import Effect, End
from batchd.lifecycle.entry import Entry, Phase
from batchd.lifecycle.inputs import Input
from batchd.lifecycle.table import decide
from batchd.records import Cause, HoldKey, Reason, Ref, Status

__all__ = ["Entry", "Input", "Lifecycle", "Phase"]


class Lifecycle:
    """The map of all tasks whose files are not known to be published. For one thread."""

    def __init__(self) -> None:
        self._entries: dict[Ref, Entry] = {}
        #: By task: those that come after it and have not started.
        self._dependants: dict[Ref, dict[Ref, None]] = {}

    @property
    def entries(self) -> Mapping[Ref, Entry]:
        """Every task that is here, for whoever only looks."""
        return MappingProxyType(self._entries)

    def take(self, given: Input) -> list[Effect]:
        """Take an input; return what is to be done. Raises ``ValueError`` for one that cannot come about."""
        if isinstance(given, inputs.Accepted):
            self._accept(given)
            return []
        if isinstance(given, inputs.Unpublished):
            self._entries[given.ref] = Entry(given.ref, Phase.ENDED)
            return []
        effects: list[Effect] = []
        for each in self._followed(given):
            entry = self._entries.get(each.ref)
            if entry is None:
                continue  # it is published: whoever wanted something of it was late
            _note(entry, each)
            entry.phase, more = decide(entry, each)
            if entry.phase.waits:
                entry.attempt, entry.wish = 0, None
            effects += more
        return effects

    def _accept(self, given: inputs.Accepted) -> None:
        after = frozenset(HoldKey.on(ref, Cause.DEPENDENCY) for ref in given.after)
        entry = Entry(given.ref, Phase.QUEUED, after, suspect=given.suspect)
        for ref in given.after:
            self._dependants.setdefault(ref, {})[given.ref] = None
        entry.phase = entry.waiting
        self._entries[given.ref] = entry

    def _followed(self, given: Input) -> Iterator[Input]:
        """Yield an input, and what it means for tasks that come after its own."""
        yield given
        if isinstance(given, inputs.Published):
            self._entries.pop(given.ref, None)
            yield from self._after(given.ref, given.status)

    def _after(self, first: Ref, status: Status) -> Iterator[Input]:
        """Yield what the published end of a task means for those that come after it, and after those."""
        if status is Status.COMPLETED:
            for ref in self._dependants.pop(first, ()):
                yield inputs.Lifted(ref, HoldKey.on(first, Cause.DEPENDENCY))
            return
        message = f"it comes after {first.task}, which ended as {status}"
        failed = [first]
        for each in failed:
            for ref in self._dependants.pop(each, ()):
                entry = self._entries.get(ref)
                if entry is not None and entry.phase.waits:
                    yield inputs.GiveUp(End(ref, Status.CANCELLED, Reason.DEPENDENCY, message))
                    failed.append(ref)


def _note(entry: Entry, given: Input) -> None:
    """Take over what an input says; what follows from it is for the table."""
    match given:
        case inputs.Held(hold=hold):
            entry.holds |= {hold}
        case inputs.Lifted(hold=hold):
            entry.holds -= {hold}
        case inputs.Dispatched(attempt=attempt):
            entry.attempt = attempt
        case inputs.Cancel(wish=wish):
            entry.wish = wish
        case inputs.Halt(wish=wish) | inputs.TurnedAway(wish=wish):
            entry.wish = entry.wish or wish
        case inputs.Finished(status=status) | inputs.Ended(status=status):
            entry.ended = entry.ended or status
        case inputs.Settled(suspect=suspect):
            entry.suspect = entry.suspect or suspect
