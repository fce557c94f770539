"""Targets of orders: ``BATCH`` or ``BATCH/TASK``, found in the store, or refused in words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchd.control import EndedBefore
from batchd.errors import NotPossibleError, UnknownNameError, UsageError
from batchd.log import escape
from batchd.records import Batch, Ref, TaskStatus, outcome
from batchd.store import BatchTask, Store, lookups

_REFUSED = "was refused when it came: it has no tasks"


@dataclass(frozen=True, slots=True)
class OrderTarget:
    """One batch, all of it or some of its tasks."""

    batch: Batch
    #: Every task of the batch by its id, ended or not, in order.
    tasks: Mapping[str, BatchTask]
    #: The ids that were named; empty: the whole batch.
    named: tuple[str, ...] = ()

    @property
    def chosen(self) -> tuple[str, ...]:
        """The ids of the tasks that were named, or of all."""
        return self.named or tuple(self.tasks)


def given(target: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the targets of a request, each once. Raises ``UsageError`` where there is none."""
    values = (target,) if isinstance(target, str) else target
    if not values:
        raise UsageError("it needs a target: BATCH or BATCH/TASK")
    return tuple(dict.fromkeys(values))


def find(store: Store, targets: Sequence[str], *, refused: bool = False) -> list[OrderTarget]:
    """Return what ``targets`` name, by batch. Raises ``UsageError`` for what there is not.

    ``refused``: files that were refused are batches too, though they have no tasks.
    """
    named: dict[str, list[str]] = {}
    whole: set[str] = set()
    for target in targets:
        name, slash, task = target.strip("/").partition("/")
        if not name or "/" in task:
            raise UsageError(f"{escape(target)} is neither BATCH nor BATCH/TASK")
        named.setdefault(name, [])
        if slash:
            named[name].append(task)
        else:
            whole.add(name)
    found = [_one(store, name, () if name in whole else ids) for name, ids in named.items()]
    for each in () if refused else found:
        if not each.tasks:
            raise UsageError(f"batch {each.batch.name} {_REFUSED}")
    return found


def _one(store: Store, name: str, ids: Sequence[str]) -> OrderTarget:
    try:
        batch = store.read(lookups.find_batch, name)
    except UnknownNameError as error:
        raise UsageError(escape(str(error))) from None
    tasks = store.read(lookups.tasks, name)
    for task in ids:
        if task not in tasks:
            raise UsageError(f"batch {name} has no task {escape(task)}")
    return OrderTarget(batch, tasks, tuple(dict.fromkeys(ids)))


def left(target: OrderTarget) -> list[Ref]:
    """Return those of a target's tasks that have not ended."""
    batch, tasks = target.batch.name, target.tasks
    return [Ref(batch, name) for name in target.chosen if not tasks[name].status.final]


def unfinished(target: OrderTarget) -> list[Ref]:
    """Return those of a target's tasks that have not ended.

    Raises ``UsageError`` where none is left, or one that was named has ended.
    """
    if ended := over(target):
        raise UsageError(why(ended[0]))
    return left(target)


def over(target: OrderTarget) -> list[EndedBefore]:
    """Return what of a target has ended:
    the tasks that were named and have, or all of the batch.
    """
    batch, tasks = target.batch.name, target.tasks
    if target.named:
        named = [(name, tasks[name].status) for name in target.named]
        return [
            EndedBefore(target=f"{batch}/{name}", counts={status.value: 1})
            for name, status in named
            if status.final
        ]
    statuses = Counter(member.status for member in tasks.values())
    if not all(status.final for status in statuses):
        return []
    return [
        EndedBefore(target=batch, counts={s.value: statuses[s] for s in TaskStatus if statuses[s]})
    ]


def cancelled(ended: EndedBefore) -> bool:
    """Return whether what has ended is cancelled, as a whole."""
    return outcome({TaskStatus(name): count for name, count in ended.counts.items()}) == "cancelled"


def why(ended: EndedBefore) -> str:
    """Return why there is nothing to order for what has ended."""
    if not ended.counts:
        return f"batch {ended.target} {_REFUSED}"
    if "/" in ended.target:
        return f"{ended.target} has finished already, as {' '.join(ended.counts)}"
    counts = ", ".join(f"{count} {status}" for status, count in ended.counts.items())
    return f"batch {ended.target} has finished already: {counts}"


def left_over(batch: str) -> NotPossibleError:
    """Return why nothing can be ordered for a batch that has tasks left,
    and that this daemon has not taken up.
    """
    return NotPossibleError(
        f"batch {batch} is left from before, and process {os.getpid()} works for a `batchd run` "
        "alone: give the order again when that has ended"
    )
