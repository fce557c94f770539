"""The queue: whose turn it is. Pure, and incremental, so that 100,000 waiting tasks cost nothing.

The rule, in full: a ready task starts when it is the best by priority, then order, and its
directory is neither the same as, nor above, nor below that of a task that has begun, nor of a
better ready task that itself waits for its directory. So nothing is overtaken by what would
keep it waiting: nothing starves. (But for tasks of a crowded provider, which let others pass.)

Ready tasks of one model and one directory queue in a lane. Only the head of a lane competes; a
lane that is blocked stands aside, on the directory that blocks it, until that is given back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set as AbstractSet
from heapq import heappop, heappush
from operator import itemgetter
from typing import TypeAlias

from batchd.lifecycle.entry import Entry
from batchd.lifecycle.holds import DirectoryLocks, Lane, Rank, Taken, discard
from batchd.records import Ref, untiered

#: By model, ``PROVIDER/MODEL``.
Heads: TypeAlias = dict[str, list[Rank]]


def provider_of(model: str) -> str:
    """Return the provider of a model."""
    return model.partition("/")[0]


def is_of(model: str, name: str) -> bool:
    """Whether a model, at its tier or any, is the one of this name,
    or one of the provider of this name.
    """
    return name in {model, untiered(model), provider_of(model)}


def competing(heads: Mapping[str, list[Rank]], parked: AbstractSet[str]) -> Heads:
    """Return those of the models that are not parked, nor their providers."""
    return {
        model: theirs
        for model, theirs in heads.items()
        if parked.isdisjoint((model, untiered(model), provider_of(model)))
    }


def of(heads: Mapping[str, list[Rank]], name: str, parked: AbstractSet[str]) -> Heads:
    """Return those of a model, or of a provider's models that are not parked themselves; without a
    name those of all that compete.
    """
    if not name:
        return competing(heads, parked)
    if name in heads:
        return {name: heads[name]}
    return {
        model: theirs
        for model, theirs in heads.items()
        if provider_of(model) == name and model not in parked
    }


class Queue:
    """The tasks that may start, and the directories of those that have begun.

    ``Lifecycle`` says what is in it.
    """

    def __init__(self, entries: Mapping[Ref, Entry]) -> None:
        """``entries``: every task that there is."""
        self._entries = entries
        self._lanes: dict[tuple[str, str], Lane] = {}
        #: By model: the heads of lanes that compete. May hold stale ranks.
        self._heads: Heads = {}
        self._suspects: Heads = {}
        self._aside: dict[str, dict[Lane, None]] = {}
        self._directories = DirectoryLocks()
        #: Providers and models whose tasks are not drawn.
        self.parked: set[str] = set()

    # Whose turn it is

    def next(self) -> Ref | None:
        """Return a task that ``draw`` would return as it stands; None: none may start."""
        heads = competing(self._heads, self.parked)
        return next((theirs[0][2] for theirs in heads.values() if self._tidy(theirs)), None)

    def draw(self, slots: int, crowded: AbstractSet[str] = frozenset()) -> list[Ref]:
        """Return the tasks whose turn it is, at most ``slots``.

        Each is to get a slot now, or a hold, or to be put back.

        Those of ``crowded`` providers come last: they would wait in their slots.
        """
        drawn: list[Ref] = []
        while len(drawn) < slots:
            heads = competing(self._heads, self.parked)
            calm = {
                name: theirs for name, theirs in heads.items() if provider_of(name) not in crowded
            }
            ref = (crowded and self._draw(calm)) or self._draw(heads)
            if not ref:
                break
            drawn.append(ref)
        # There may have been a model a task.
        self._heads = {source: theirs for source, theirs in self._heads.items() if theirs}
        return drawn

    def draw_of(self, name: str, last: Sequence[str] = ()) -> Ref | None:
        """Return the next task of a provider or a model,
        even if that is parked, to see how it does.

        As ``draw``.

        Those of a provider's models that are parked themselves are none of it.
        Models in ``last`` come last, in this order.
        """
        heads = of(self._heads, name, self.parked)
        first = {source: theirs for source, theirs in heads.items() if source not in last}
        for each in (first, *({source: heads[source]} for source in last if source in heads)):
            if ref := self._draw(each):
                break
        if name in self.parked:
            self._let_pass(name)
        return ref

    def ready(self, name: str) -> bool:
        """Return whether ``draw_of`` may find a task of a provider or a model."""
        return any(map(self._tidy, of(self._heads, name, self.parked).values()))

    def draw_suspect(self, name: str = "") -> Ref | None:
        """Return the next task that must run in a process of its own;
        of a provider or a model, even if that is parked.

        As ``draw``.
        """
        rank = self._best(of(self._suspects, name, self.parked))
        if rank is None:
            return None
        entry = self._entries[rank[2]]
        entry.lane, entry.drawn, entry.begins = None, True, False
        return rank[2]

    def suspect_due(self, crowded: AbstractSet[str] = frozenset()) -> Ref | None:
        """Return the task that must run in a process of its own and has its turn:
        no other one that is ready is better.

        Those of ``crowded`` providers let it pass, as they do in ``draw``.
        """
        suspect = self._first(competing(self._suspects, self.parked))
        if suspect is None:
            return None
        provider = provider_of(self._entries[suspect[2]].facts.model)
        passed = crowded if provider not in crowded else frozenset()
        heads = competing(self._heads, self.parked)
        best = self._first(
            {m: theirs for m, theirs in heads.items() if provider_of(m) not in passed}
        )
        return None if best and best < suspect else suspect[2]

    # What is in it

    def enter(self, entry: Entry) -> None:
        """Let a task compete that is queued now."""
        facts, rank = entry.facts, rank_of(entry)
        entry.rank = rank
        if entry.suspect:
            entry.lane = Lane(facts.model, "", [rank])
            heappush(self._suspects.setdefault(facts.model, []), rank)
            return
        directory = "" if entry.place else facts.directory
        key = (facts.model, directory)
        lane = entry.lane = self._lanes.get(key) or self._lanes.setdefault(key, Lane(*key))
        heappush(lane.heap, rank)
        if lane.heap[0] is rank:
            self._wake(lane)

    def leave(self, entry: Entry) -> None:
        """Take a task out that is not queued any more."""
        lane, rank = entry.lane, entry.rank
        if lane is None:
            return
        entry.lane = entry.rank = None
        if lane.claim and lane.claim.claim is rank:
            self._wake(lane)
        else:
            self._push(lane)

    def put_back(self, entry: Entry) -> None:
        """Take back that a task was drawn: it keeps no directory that it did not have before."""
        entry.drawn = False
        if entry.begins:
            entry.begins = False
            self.vacate(entry)

    def occupy(self, entry: Entry) -> None:
        """Take a task's directory: it is the task's own until it ends."""
        entry.place = Taken(entry.facts.directory)
        self._directories.add(entry.place)

    def vacate(self, entry: Entry) -> None:
        """Give a task's directory back."""
        place, entry.place = entry.place, None
        if place is not None:
            self._directories.remove(place)
            for lane in place.waiters:
                if lane.blocker is place:
                    self._wake(lane)

    def park(self, name: str) -> None:
        """Draw no task of this provider, or model, until ``unpark``."""
        self.parked.add(name)
        self._let_pass(name)

    def unpark(self, name: str) -> None:
        """Draw this provider's, or model's, tasks again."""
        self.parked.discard(name)

    # How it is done

    def _draw(self, heads: Mapping[str, list[Rank]]) -> Ref | None:
        """Return the best task whose directory is free."""
        while rank := self._best(heads):
            entry = self._entries[rank[2]]
            lane = entry.lane
            assert lane is not None, "a current head is in its lane"
            if not entry.place and (blocker := self._directories.blocker(lane.directory, rank)):
                lane.blocker = blocker
                blocker.waiters[lane] = None
                lane.claim = Taken(lane.directory, rank)
                self._directories.add(lane.claim)
                self._aside.setdefault(lane.source, {})[lane] = None
                continue
            entry.lane, entry.drawn, entry.begins = None, True, not entry.place
            if not entry.place:
                self.occupy(entry)
            self._push(lane)
            return entry.ref
        return None

    def _best(self, heads: Mapping[str, list[Rank]]) -> Rank | None:
        """Take and return the best current rank."""
        current = [theirs for theirs in heads.values() if self._tidy(theirs)]
        return heappop(min(current, key=itemgetter(0))) if current else None

    def _first(self, heads: Mapping[str, list[Rank]]) -> Rank | None:
        """Return the best current rank, which stays where it is."""
        return min((theirs[0] for theirs in heads.values() if self._tidy(theirs)), default=None)

    def _tidy(self, heads: list[Rank]) -> bool:
        """Drop stale ranks from the front; return whether one is left."""
        while heads:
            entry = self._entries.get(heads[0][2])
            lane = entry.lane if entry and entry.rank is heads[0] else None
            if lane and not lane.blocker and lane.heap[0] is heads[0]:
                return True
            heappop(heads)
        return False

    def _push(self, lane: Lane) -> None:
        """Let the lane's head compete; forget a lane that is empty."""
        while lane.heap:
            entry = self._entries.get(lane.heap[0][2])
            if entry and entry.lane is lane and entry.rank is lane.heap[0]:
                if not lane.blocker:
                    heappush(self._heads.setdefault(lane.source, []), lane.heap[0])
                return
            heappop(lane.heap)
        if self._lanes.get(key := (lane.source, lane.directory)) is lane:
            del self._lanes[key]

    def _let_pass(self, name: str) -> None:
        """Drop the claims of a parked provider or model:
        what cannot start must not keep others from starting.
        """
        for source in [source for source in self._aside if is_of(source, name)]:
            for lane in list(self._aside.get(source, ())):
                self._wake(lane)

    def _wake(self, lane: Lane) -> None:
        """Let a lane compete again, and with it all that waited for its claim, and for theirs."""
        woken = [lane]
        for each in woken:
            claim, each.claim, each.blocker = each.claim, None, None
            discard(self._aside, each.source, each)
            self._push(each)
            if claim:
                self._directories.remove(claim)
                woken.extend(w for w in claim.waiters if w.blocker is claim)


def rank_of(entry: Entry) -> Rank:
    """Return what sorts a task: by priority, then order; each time another one."""
    facts = entry.facts
    return -facts.priority, facts.order, facts.ref
