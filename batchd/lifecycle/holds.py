"""What keeps tasks from starting: holds, and the directories that others work in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from batchd.records import Cause, HoldKey, Parking, Ref, Scope, summed, untiered

#: Sorts the best task first: minus its priority, its order, its name.
Rank: TypeAlias = tuple[int, int, Ref]
_Member = TypeVar("_Member")


@dataclass(slots=True, eq=False)
class Taken:
    """A directory that is taken: by a task that has begun, or by a lane that waits for it."""

    directory: str
    #: The waiting lane's head, which only blocks worse ones; None: blocks all.
    claim: Rank | None = None
    #: The lanes that stand aside because of it, as an ordered set.
    waiters: dict[Lane, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lane:
    """The ready tasks of one model that work in one directory."""

    #: The model's name, ``PROVIDER/MODEL``.
    source: str
    directory: str
    heap: list[Rank] = field(default_factory=list)
    #: While it stands aside: what it waits for, and its own claim on the directory.
    blocker: Taken | None = None
    claim: Taken | None = None


class DirectoryLocks:
    """The directories that are taken, found by their own path, from above and from below."""

    def __init__(self) -> None:
        self._at: dict[str, dict[Taken, None]] = {}
        self._below: dict[str, dict[Taken, None]] = {}

    def add(self, taken: Taken) -> None:
        """Take a directory."""
        self._at.setdefault(taken.directory, {})[taken] = None
        for path in _parents(taken.directory):
            self._below.setdefault(path, {})[taken] = None

    def remove(self, taken: Taken) -> None:
        """Give it back; who waited for it is the caller's business."""
        discard(self._at, taken.directory, taken)
        for path in _parents(taken.directory):
            discard(self._below, path, taken)

    def blocker(self, directory: str, rank: Rank) -> Taken | None:
        """Return what keeps ``rank`` out of ``directory``, if anything does."""
        near = [self._below.get(directory), self._at.get(directory)]
        near += [self._at.get(path) for path in _parents(directory)]
        for found in near:
            for taken in found or ():
                if taken.claim is None or taken.claim < rank:
                    return taken
        return None


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above an absolute path, nearest first."""
    end = len(path)
    while (end := path.rfind("/", 0, end)) > 0:
        yield path[:end]
    if path != "/":
        yield "/"


def discard(index: dict[str, dict[_Member, None]], key: str, member: _Member) -> None:
    """Take ``member`` out of a set in ``index``; keep no empty set."""
    members = index.get(key)
    if members is not None:
        members.pop(member, None)
        if not members:
            del index[key]


#: What waits: its scope and its name.
Key: TypeAlias = tuple[Scope, str]
ALL: Key = (Scope.ALL, "")
DAY: Key = (Scope.DAY, "")


class Holds:
    """The holds: every reason to wait. ``Lifecycle`` alone changes it.

    A parking is what people see and the store keeps. It concerns everything, a provider or a model
    by its name, and the tasks of a batch, or one task, by a hold of its key.
    Other holds stand without a parking: the daemon finds them again.
    """

    def __init__(self) -> None:
        self._parkings: dict[Key, dict[Cause, Parking]] = {}
        self._kept: dict[HoldKey, dict[Ref, None]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._parkings

    @property
    def parkings(self) -> tuple[Parking, ...]:
        """All that is parked, oldest first;
        without the tasks that wait for the day's money alone, where all do.
        """
        every = (p for causes in self._parkings.values() for p in causes.values())
        return summed(sorted(every, key=lambda parking: parking.since))

    def causes(self, key: Key) -> Mapping[Cause, Parking]:
        """Return why something waits; empty where it does not."""
        return self._parkings.get(key, {})

    def paused(self, name: str) -> bool:
        """Whether somebody paused a provider, or a model, whatever else it waits for."""
        return any(not cause.reason for cause in self.causes((Scope.of(name), name)))

    def outages(self) -> list[str]:
        """Return the providers and models that are out of order, paused ones too."""
        return [
            n
            for (s, n), causes in self._parkings.items()
            if s.asked and any(c.reason for c in causes)
        ]

    def untried(self, name: str) -> bool:
        """Whether no task is to try a provider or a model now:
        it is paused, or its provider is parked.
        """
        provider = name.partition("/")[0]
        return self.paused(name) or (name != provider and (Scope.PROVIDER, provider) in self)

    def models(self, provider: str) -> list[str]:
        """Return the models of a provider that are parked, but not paused."""
        names = (name for scope, name in self._parkings if scope is Scope.MODEL)
        return [n for n in names if n.partition("/")[0] == provider and not self.paused(n)]

    def kept(self, hold: HoldKey) -> tuple[Ref, ...]:
        """Return the tasks that a hold keeps from starting, in the order in which it began to."""
        return tuple(self._kept.get(hold, ()))

    def keeps(self, hold: HoldKey) -> bool:
        """Whether a hold keeps any task from starting."""
        return hold in self._kept

    def on(self, ref: Ref, after: Iterable[Ref]) -> list[HoldKey]:
        """Return the holds by which a task waits from the first:
        for what it comes ``after``, and as its batch is parked, or itself.
        """
        holds = [HoldKey.on(each, Cause.DEPENDENCY) for each in dict.fromkeys(after)]
        if self._parkings:
            keys = ((Scope.BATCH, ref.batch), (Scope.TASK, str(ref)))
            holds += [parking.key for key in keys for parking in self.causes(key).values()]
        return holds

    def of(self, ref: Ref, model: str, holds: Iterable[HoldKey]) -> Iterator[Parking]:
        """Yield what is parked that a task of a model waits for; ``holds``: its own."""
        if self._parkings:
            for key in needs(ref, model, holds):
                yield from self.causes(key).values()

    # What changes it

    def enter(self, parking: Parking) -> None:
        """Enter a parking."""
        key = (parking.scope, parking.name)
        causes = self._parkings.get(key, {})
        if parking.cause.reason:
            # A provider has one outage at a time.
            causes = {cause: known for cause, known in causes.items() if not cause.reason}
        self._parkings[key] = {**causes, parking.cause: parking}

    def strike(self, key: Key, keep: Iterable[Cause] = ()) -> tuple[Parking, ...]:
        """Strike something out, those causes apart that are in ``keep``; return what was struck."""
        causes = self._parkings.pop(key, {})
        kept = {cause: causes[cause] for cause in keep if cause in causes}
        if kept:
            self._parkings[key] = kept
        return tuple(parking for cause, parking in causes.items() if cause not in kept)

    def add(self, hold: HoldKey, ref: Ref) -> None:
        """Put a hold on a task."""
        self._kept.setdefault(hold, {})[ref] = None

    def remove(self, hold: HoldKey, ref: Ref) -> None:
        """Take a hold off a task."""
        kept = self._kept.get(hold)
        if kept is not None:
            kept.pop(ref, None)
            if not kept:
                del self._kept[hold]

    def forget(self, hold: HoldKey) -> tuple[Ref, ...]:
        """Forget which tasks a hold keeps, and return them: it is never lifted."""
        return tuple(self._kept.pop(hold, ()))


def needs(ref: Ref, model: str, holds: Iterable[HoldKey]) -> Iterator[Key]:
    """Yield what a task of a model waits for where it is parked; ``holds``: its own."""
    yield ALL
    for name in dict.fromkeys((model.partition("/")[0], untiered(model), model)):
        yield Scope.of(name), name
    for hold in holds:
        if hold.cause is Cause.TRIED:
            yield hold.scope, hold.name
    yield Scope.BATCH, ref.batch
    yield Scope.TASK, str(ref)
