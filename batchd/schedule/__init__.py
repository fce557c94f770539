"""What to dispatch next: pure, and incremental, so that 100,000 waiting tasks cost nothing.

The rule, in full: a ready task starts when it is the best by priority, then order, and its
directory is neither the same as, nor above, nor below that of a task that has begun, nor of a
better ready task that itself waits for its directory. So nothing is overtaken by what would
keep it waiting: nothing starves. (But for tasks of a crowded provider, which let others pass.)

Ready tasks of one model and one directory queue in a lane. Only the head of a lane competes; a
lane that is blocked stands aside, on the hold that blocks it, until that hold goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from heapq import heappop, heappush
from operator import itemgetter

from batchd.records import Cause, HoldKey, Ref, Status
from batchd.schedule.heads import Heads, competing, is_of, of, provider_of
from batchd.schedule.holds import Entry, Hold, Holds, Lane, discard
from batchd.schedule.items import Item, Queued

__all__ = ["Item", "Queued", "Schedule", "is_of"]


class Schedule:
    """The tasks that are to run, and those that do.

    Not for several threads: it belongs to the daemon's loop.
    """

    def __init__(self) -> None:
        self._items: dict[Ref, Item] = {}
        self._dependants: dict[Ref, dict[Ref, None]] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        #: By model: the heads of lanes that compete. May hold stale entries.
        self._heads: Heads = {}
        self._suspects: Heads = {}
        self._aside: dict[str, dict[Lane, None]] = {}
        self._holds = Holds()
        #: Providers and models.
        self._parked: set[str] = set()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._items

    def item(self, ref: Ref) -> Item | None:
        """Return how a task stands here, for whoever only looks; None: it is not here."""
        return self._items.get(ref)

    def refs(self, name: str = "", *, waiting: bool = False) -> list[Ref]:
        """Return the tasks, of one provider, of one model or all; ``waiting``: only those that do not run."""
        return [
            ref
            for ref, item in self._items.items()
            if (not name or is_of(item.queued.source, name)) and not (waiting and item.taken)
        ]

    def taken(self) -> set[Ref]:
        """Return the tasks that were dispatched, and have neither ended nor given their slot back."""
        return {ref for ref, item in self._items.items() if item.taken}

    def sizes(self) -> Counter[str]:
        """Return how many tasks are here, by batch."""
        return Counter(ref.batch for ref in self._items)

    def models(self) -> set[str]:
        """Return the models of all tasks that are here."""
        return {item.queued.source for item in self._items.values()}

    def next(self) -> Ref | None:
        """Return a task that ``take`` would return as it stands; None: none may start."""
        heads = competing(self._heads, self._parked)
        return next((theirs[0][2] for theirs in heads.values() if self._tidy(theirs)), None)

    def provider(self, ref: Ref) -> str:
        """Return the provider of a task; empty for one that is not here."""
        item = self._items.get(ref)
        return item.queued.provider if item else ""

    def model(self, ref: Ref) -> str:
        """Return the model of a task, ``PROVIDER/MODEL``; empty for one that is not here."""
        item = self._items.get(ref)
        return item.queued.source if item else ""

    def suspect(self, ref: Ref) -> bool:
        """Whether a task must run in a process of its own."""
        item = self._items.get(ref)
        return item is not None and item.suspect

    def add(self, queued: Queued) -> None:
        """Queue a task.

        Whatever it comes ``after`` must still be to come to its end: ``done`` is told of that
        later, also for a task that was never added. Raises ``ValueError`` for a task that is here.
        """
        if queued.ref in self._items:
            raise ValueError(f"{queued.ref} is in the schedule already")
        after = frozenset(HoldKey.on(ref, Cause.DEPENDENCY) for ref in queued.after)
        item = Item(queued, after, suspect=queued.suspect)
        self._items[queued.ref] = item
        for ref in queued.after:
            self._dependants.setdefault(ref, {})[queued.ref] = None
        if queued.begun or queued.suspect:
            self._begin(item)
        if not item.holds:
            self._ready(item)

    def take(self, slots: int, crowded: AbstractSet[str] = frozenset()) -> list[Ref]:
        """Return the next tasks to dispatch, at most ``slots``; from now on they run.

        Those of ``crowded`` providers come last: they would wait in their slots.
        """
        taken: list[Ref] = []
        while len(taken) < slots:
            heads = competing(self._heads, self._parked)
            calm = {
                name: theirs for name, theirs in heads.items() if provider_of(name) not in crowded
            }
            ref = (crowded and self._take(calm)) or self._take(heads)
            if not ref:
                break
            taken.append(ref)
        # There may have been a model a task.
        self._heads = {source: theirs for source, theirs in self._heads.items() if theirs}
        return taken

    def take_of(self, name: str, last: Sequence[str] = ()) -> Ref | None:
        """Return the next task of a provider or a model, even if that is parked, to see how it does.

        Those of a provider's models that are parked themselves are none of it. Models in ``last`` come last, in this order.
        """
        heads = of(self._heads, name, self._parked)
        first = {source: theirs for source, theirs in heads.items() if source not in last}
        for each in (first, *({source: heads[source]} for source in last if source in heads)):
            if ref := self._take(each):
                break
        if name in self._parked:
            self._let_pass(name)
        return ref

    def ready(self, name: str) -> bool:
        """Return whether ``take_of`` may find a task of a provider or a model."""
        return any(map(self._tidy, of(self._heads, name, self._parked).values()))

    def take_suspect(self, name: str = "") -> Ref | None:
        """Return the next task that must run in a process of its own; of a provider or a model, even if that is parked."""
        heads = (
            of(self._suspects, name, self._parked)
            if name
            else competing(self._suspects, self._parked)
        )
        entry = self._best(heads)
        if entry is None:
            return None
        item = self._items[entry[2]]
        item.lane, item.taken, item.begins = None, True, False
        return entry[2]

    def suspect_due(self, crowded: AbstractSet[str] = frozenset()) -> Ref | None:
        """Return the task that must run in a process of its own and has its turn: no other one that is ready is better.

        Those of ``crowded`` providers let it pass, as they do in ``take``.
        """
        suspect = self._first(competing(self._suspects, self._parked))
        if suspect is None:
            return None
        passed = crowded if self.provider(suspect[2]) not in crowded else frozenset()
        heads = competing(self._heads, self._parked)
        best = self._first(
            {m: theirs for m, theirs in heads.items() if provider_of(m) not in passed}
        )
        return None if best and best < suspect else suspect[2]

    def precedes(self, one: Ref, other: Ref) -> bool:
        """Whether one task is better than another by priority, then order; False where one of them has ended."""
        ours, theirs = self._items.get(one), self._items.get(other)
        return ours is not None and theirs is not None and _entry(ours) < _entry(theirs)

    def release(self, ref: Ref, *, suspect: bool = False) -> None:
        """Queue a task again that gave its slot back; it keeps its directory.

        ``suspect``: its worker died, so from now on only ``take_suspect`` returns it.
        """
        item = self._items.get(ref)
        if item and item.place and item.lane is None:
            item.suspect = item.suspect or suspect
            item.taken = False
            if not item.holds:
                self._ready(item)

    def begins(self, ref: Ref) -> bool:
        """Whether a task that was taken had never begun before."""
        item = self._items.get(ref)
        return item is not None and item.begins

    def put_back(self, ref: Ref) -> None:
        """Take back that a task was taken, as if it had not been: it keeps no directory that it did not have before."""
        item = self._items.get(ref)
        if item is not None and item.taken:
            self._untake(item)
            if not item.holds:
                self._ready(item)

    def hold_back(self, ref: Ref, hold: HoldKey) -> None:
        """Do so, and do not dispatch it until this is lifted."""
        item = self._items.get(ref)
        if item is not None and item.taken:
            item.holds |= {hold}
            self._untake(item)

    def hold(self, ref: Ref, hold: HoldKey) -> None:
        """Do not dispatch a task until this, and all else that holds it, is lifted; one that runs is not stopped."""
        if item := self._items.get(ref):
            item.holds |= {hold}
            self._withdraw(item)

    def lift(self, ref: Ref, hold: HoldKey) -> None:
        """Take a hold back."""
        item = self._items.get(ref)
        if item is not None and hold in item.holds:
            item.holds -= {hold}
            if not item.holds and not item.taken:
                self._ready(item)

    def prioritise(self, ref: Ref, priority: int) -> None:
        """Give a task another priority, which also counts for its next dispatches."""
        if item := self._items.get(ref):
            item.queued = replace(item.queued, priority=priority)
            if self._withdraw(item):
                self._ready(item)

    def done(self, ref: Ref, status: Status) -> list[Ref]:
        """Forget a task that ended; return the tasks that can never run now.

        Those are forgotten too, and so are the ones that come after them: each in the list
        stands behind the one that it comes after.
        """
        self.remove(ref)
        if status is Status.COMPLETED:
            for dependant in self._dependants.pop(ref, ()):
                self.lift(dependant, HoldKey.on(ref, Cause.DEPENDENCY))
            return []
        doomed: list[Ref] = []
        ended = [ref]
        for failed in ended:
            for dependant in self._dependants.pop(failed, ()):
                if dependant in self._items:
                    self.remove(dependant)
                    doomed.append(dependant)
                    ended.append(dependant)
        return doomed

    def remove(self, ref: Ref) -> None:
        """Forget a task without an end; what comes after it goes on waiting."""
        item = self._items.pop(ref, None)
        if item is None:
            return
        if item.place:
            self._leave(item.place)
        self._withdraw(item)

    def park_provider(self, name: str) -> None:
        """Dispatch no task of this provider, or model, until ``unpark_provider``."""
        self._parked.add(name)
        self._let_pass(name)

    def unpark_provider(self, name: str) -> None:
        """Dispatch this provider's, or model's, tasks again."""
        self._parked.discard(name)

    def _untake(self, item: Item) -> None:
        """Take back that a task was taken; it keeps no directory that it did not have before."""
        item.taken = False
        if item.begins and item.place:
            place, item.place, item.begins = item.place, None, False
            self._leave(place)

    def _withdraw(self, item: Item) -> bool:
        """Take a task that is ready out of its lane; return whether it was in one."""
        lane, entry = item.lane, item.entry
        if lane is None:
            return False
        item.lane = item.entry = None
        if lane.claim and lane.claim.claim is entry:
            self._wake(lane)
        else:
            self._push(lane)
        return True

    def _ready(self, item: Item) -> None:
        queued = item.queued
        entry = item.entry = _entry(item)
        if item.suspect:
            item.lane = Lane(queued.source, "", [entry])
            heappush(self._suspects.setdefault(queued.source, []), entry)
            return
        directory = "" if item.place else queued.directory
        key = (queued.source, directory)
        lane = item.lane = self._lanes.get(key) or self._lanes.setdefault(key, Lane(*key))
        heappush(lane.heap, entry)
        if lane.heap[0] is entry:
            self._wake(lane)

    def _begin(self, item: Item) -> None:
        item.place = Hold(item.queued.directory)
        self._holds.add(item.place)

    def _take(self, heads: Mapping[str, list[Entry]]) -> Ref | None:
        """Return the best task whose directory is free; from now on it runs."""
        while entry := self._best(heads):
            item = self._items[entry[2]]
            lane = item.lane
            assert lane is not None, "a current head is in its lane"
            if not item.place and (blocker := self._holds.blocker(lane.directory, entry)):
                self._stand_aside(lane, blocker, entry)
                continue
            item.lane, item.taken, item.begins = None, True, not item.place
            if not item.place:
                self._begin(item)
            self._push(lane)
            return item.queued.ref
        return None

    def _best(self, heads: Mapping[str, list[Entry]]) -> Entry | None:
        """Take and return the best current entry."""
        current = [theirs for theirs in heads.values() if self._tidy(theirs)]
        return heappop(min(current, key=itemgetter(0))) if current else None

    def _first(self, heads: Mapping[str, list[Entry]]) -> Entry | None:
        """Return the best current entry, which stays where it is."""
        return min((theirs[0] for theirs in heads.values() if self._tidy(theirs)), default=None)

    def _tidy(self, heads: list[Entry]) -> bool:
        """Drop stale entries from the front; return whether one is left."""
        while heads:
            item = self._items.get(heads[0][2])
            lane = item.lane if item and item.entry is heads[0] else None
            if lane and not lane.blocker and lane.heap[0] is heads[0]:
                return True
            heappop(heads)
        return False

    def _push(self, lane: Lane) -> None:
        """Let the lane's head compete; forget a lane that is empty."""
        while lane.heap:
            item = self._items.get(lane.heap[0][2])
            if item and item.lane is lane and item.entry is lane.heap[0]:
                if not lane.blocker:
                    heappush(self._heads.setdefault(lane.source, []), lane.heap[0])
                return
            heappop(lane.heap)
        if self._lanes.get(key := (lane.source, lane.directory)) is lane:
            del self._lanes[key]

    def _stand_aside(self, lane: Lane, blocker: Hold, entry: Entry) -> None:
        lane.blocker = blocker
        blocker.waiters[lane] = None
        lane.claim = Hold(lane.directory, entry)
        self._holds.add(lane.claim)
        self._aside.setdefault(lane.source, {})[lane] = None

    def _let_pass(self, name: str) -> None:
        """Drop the claims of a parked provider or model: what cannot start must not keep others from starting."""
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
                self._holds.remove(claim)
                woken.extend(w for w in claim.waiters if w.blocker is claim)

    def _leave(self, hold: Hold) -> None:
        self._holds.remove(hold)
        for lane in hold.waiters:
            if lane.blocker is hold:
                self._wake(lane)


def _entry(item: Item) -> Entry:
    """Return what sorts a task: by priority, then order; each time another one."""
    queued = item.queued
    return -queued.priority, queued.order, queued.ref
