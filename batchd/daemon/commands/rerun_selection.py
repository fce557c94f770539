"""The choice of the tasks of a batch that run again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from batchd.daemon.commands.targets import OrderTarget
from batchd.errors import UsageError
from batchd.records import TaskStatus

#: Names that one message has room for.
_NAMED = 5


def chosen(target: OrderTarget, *, failed: bool, held: Collection[str] = ()) -> list[str]:
    """Return the ids of what is to run again, in the order of the file.

    That is what was named, or what of it did not complete, and all that comes after any of it.
    ``held``: what has not ended, and may run again all the same, as does what comes after it.
    Raises ``UsageError`` where there is nothing, or something that cannot run again now.
    """
    name, tasks = target.batch.name, target.tasks
    again = {
        task
        for task in target.chosen
        if not failed
        or task in held
        or (tasks[task].status.final and tasks[task].status is not TaskStatus.COMPLETED)
    }
    if not again:
        raise UsageError(f"no task of {name} has failed: leave out --failed to run all of it again")
    dependants: dict[str, list[str]] = {}
    for task, member in tasks.items():
        for earlier in member.after:
            dependants.setdefault(earlier, []).append(task)
    again = _with_dependants(again, dependants)
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
                    f"{name}/{each} comes after {earlier}, which is {status}: retry that one too"
                )
    return ordered


def _with_dependants(names: Iterable[str], dependants: Mapping[str, Sequence[str]]) -> set[str]:
    """Return tasks, and all that comes after any of them."""
    found = {*names}
    waiting = [*found]
    while waiting:
        fresh = [task for task in dependants.get(waiting.pop(), ()) if task not in found]
        found.update(fresh)
        waiting += fresh
    return found


def listed(names: Sequence[str]) -> str:
    """Return names, of many the first, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
