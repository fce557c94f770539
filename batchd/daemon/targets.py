"""Targets of orders: ``BATCH`` or ``BATCH/TASK``, found in the store, or refused in words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchd import words
from batchd.control import EndedBefore
from batchd.errors import NotPossibleError, UnknownNameError, UsageError
from batchd.log import escape
from batchd.records import Batch, Ref, TaskStatus, outcome
from batchd.store import lookups
from batchd.store.rows import BatchTask
from batchd.store.store import Store
from batchd.words import listed, split_target

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

    def left(self) -> list[Ref]:
        """Return those of its tasks that have not ended."""
        batch, tasks = self.batch.name, self.tasks
        return [Ref(batch, name) for name in self.chosen if not tasks[name].status.final]

    def unfinished(self) -> list[Ref]:
        """Return the same.

        Raises ``UsageError`` where none is left, or one that was named has ended.
        """
        if ended := self.over():
            raise UsageError(why(ended[0]))
        return self.left()

    def over(self) -> list[EndedBefore]:
        """Return what of it has ended:
        the tasks that were named and have, or all of the batch.
        """
        batch, tasks = self.batch.name, self.tasks
        if self.named:
            named = [(name, tasks[name].status) for name in self.named]
            return [
                EndedBefore(target=f"{batch}/{name}", counts={status.value: 1})
                for name, status in named
                if status.final
            ]
        statuses = Counter(member.status for member in tasks.values())
        if not all(status.final for status in statuses):
            return []
        counts = {s.value: statuses[s] for s in TaskStatus if statuses[s]}
        return [EndedBefore(target=batch, counts=counts)]

    def again(self, *, failed: bool, held: Collection[str] = ()) -> list[str]:
        """Return the ids of what is to run again, in the order of the file.

        That is what was named, or what of it did not complete, and all that comes after any of it.
        ``held``: what has not ended, and may run again all the same, as does what comes after it.
        Raises ``UsageError`` where there is nothing, or something that cannot run again now.
        """
        name, tasks = self.batch.name, self.tasks
        chosen = {
            task
            for task in self.chosen
            if not failed
            or task in held
            or (tasks[task].status.final and tasks[task].status is not TaskStatus.COMPLETED)
        }
        if not chosen:
            raise UsageError(
                f"no task of {name} has failed: leave out --failed to run all of it again"
            )
        dependants: dict[str, list[str]] = {}
        for task, member in tasks.items():
            for earlier in member.after:
                dependants.setdefault(earlier, []).append(task)
        again = _with_dependants(chosen, dependants)
        over = _with_dependants(held, dependants)
        ordered = [task for task in tasks if task in again]
        if busy := [task for task in ordered if not tasks[task].status.final and task not in over]:
            raise UsageError(
                f"{name}: tasks that have not ended cannot run again: {listed(busy)}; wait, or cancel them"
            )
        for each in ordered:
            for earlier in tasks[each].after:
                status = tasks[earlier].status
                if earlier not in again and status is not TaskStatus.COMPLETED:
                    raise UsageError(
                        f"{name}/{each} comes after {earlier}, which is {words.status(status)}: retry that one too"
                    )
        return ordered


def find(
    store: Store, targets: str | tuple[str, ...], *, refused: bool = False
) -> list[OrderTarget]:
    """Return what ``targets`` name, by batch. Raises ``UsageError`` for what there is not.

    ``refused``: files that were refused are batches too, though they have no tasks.
    """
    if not targets:
        raise UsageError("it needs a target: BATCH or BATCH/TASK")
    named: dict[str, list[str]] = {}
    whole: set[str] = set()
    for target in (targets,) if isinstance(targets, str) else targets:
        name, task = split_target(target)
        named.setdefault(name, [])
        if task:
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
        tasks = store.read(lookups.tasks, name)
        for task in ids:
            if task not in tasks:
                store.read(lookups.task_key, Ref(name, task))  # it raises, with the nearest
    except UnknownNameError as error:
        raise UsageError(escape(str(error))) from None
    return OrderTarget(batch, tasks, tuple(dict.fromkeys(ids)))


def cancelled(ended: EndedBefore) -> bool:
    """Return whether what has ended is cancelled, as a whole."""
    return outcome({TaskStatus(name): count for name, count in ended.counts.items()}) == "cancelled"


def why(ended: EndedBefore) -> str:
    """Return why there is nothing to order for what has ended."""
    if not ended.counts:
        return f"batch {ended.target} {_REFUSED}"
    if "/" in ended.target:
        (status,) = ended.counts
        return f"{ended.target} has finished already: {words.status(status)}"
    return f"batch {ended.target} has finished already: {words.outcomes(ended.counts)}"


def left_over(batch: str) -> NotPossibleError:
    """Return why nothing can be ordered for a batch that has tasks left,
    and that this daemon has not taken up.
    """
    return NotPossibleError(
        f"batch {batch} is left from before, and process {os.getpid()} works for a `batchd run` "
        "alone: give the order again when that has ended"
    )


def _with_dependants(names: Iterable[str], dependants: Mapping[str, Sequence[str]]) -> set[str]:
    """Return tasks, and all that comes after any of them."""
    found = {*names}
    waiting = [*found]
    while waiting:
        fresh = [task for task in dependants.get(waiting.pop(), ()) if task not in found]
        found.update(fresh)
        waiting += fresh
    return found
