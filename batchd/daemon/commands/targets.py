"""What orders are about: ``BATCH`` or ``BATCH/TASK``, found in the store, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchd.errors import UnknownNameError, UsageError
from batchd.log import escape
from batchd.records import Batch, Ref, Status
from batchd.store import Member, Store


@dataclass(frozen=True, slots=True)
class Target:
    """One batch, all of it or some of its tasks."""

    batch: Batch
    #: Every task of the batch by its id, ended or not, in order.
    tasks: Mapping[str, Member]
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


def find(store: Store, targets: Sequence[str]) -> list[Target]:
    """Return what ``targets`` name, by batch. Raises ``UsageError`` for what there is not."""
    named: dict[str, list[str]] = {}
    whole: set[str] = set()
    for target in targets:
        name, slash, task = target.strip("/").partition("/")
        if not name or "/" in task:
            raise UsageError(f"{escape(target)} is no BATCH or BATCH/TASK")
        named.setdefault(name, [])
        if slash:
            named[name].append(task)
        else:
            whole.add(name)
    return [_one(store, name, () if name in whole else ids) for name, ids in named.items()]


def _one(store: Store, name: str, ids: Sequence[str]) -> Target:
    try:
        batch = store.batch(name)
    except UnknownNameError as error:
        raise UsageError(escape(str(error))) from None
    tasks = store.tasks(name)
    for task in ids:
        if task not in tasks:
            raise UsageError(f"batch {name} has no task {escape(task)}")
    if not tasks:
        raise UsageError(f"batch {name} was refused when it came: it has no tasks")
    return Target(batch, tasks, tuple(dict.fromkeys(ids)))


def unfinished(target: Target) -> list[Ref]:
    """Return those of a target's tasks that have not ended.

    Raises ``UsageError`` where none is left, or one that was named has ended.
    """
    batch, tasks = target.batch.name, target.tasks
    left = [Ref(batch, name) for name in target.chosen if not tasks[name].status.final]
    for name in target.named:
        status = tasks[name].status
        if status.final:
            raise UsageError(f"{batch}/{name} has finished already, as {status}")
    if not left:
        raise UsageError(f"batch {batch} has finished already: {_ends(target)}")
    return left


def _ends(target: Target) -> str:
    counts = {status: 0 for status in Status if status.final}
    for name in target.chosen:
        counts[target.tasks[name].status] += 1
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
