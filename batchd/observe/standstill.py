"""What waits and why, as `status` shows it, and how to go on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from batchd import words
from batchd.log import escape
from batchd.records import Cause, Parking, Scope
from batchd.store.rows import TaskRow
from batchd.words import moment

#: So many parked tasks of one batch are shown one by one.
_MAX_NAMED_TASKS = 3
#: Said of what is out of order while no task needs it.
_UNUSED = "no task waits for it, and the next one tries it"


def of_batch(
    parked: Iterable[Parking], batch: str, tasks: Sequence[TaskRow]
) -> tuple[Parking, ...]:
    """Return what keeps tasks of a batch from going on."""
    left = [task for task in tasks if not task.status.final]
    models = {task.model for task in left}
    providers = {task.model.partition("/")[0] for task in left}
    refs = {str(task.ref) for task in left}

    def concerns(each: Parking) -> bool:
        match each.scope:
            case Scope.BATCH:
                return each.name == batch
            case Scope.TASK:
                return each.name in refs
            case Scope.PROVIDER:
                return each.name in providers
            case Scope.MODEL:
                return each.name in models
        return bool(left)

    return tuple(each for each in parked if concerns(each))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """Something that waits, as it is shown to people."""

    #: Seconds since the epoch.
    since: float
    what: str
    why: str
    #: How to go on.
    fix: str
    #: Whether somebody wanted it so.
    paused: bool = False
    #: What `resume` is to be given: a scope, and the name of what waits.
    scope: str = ""
    name: str = ""


def standstills(parked: Iterable[Parking], idle: Collection[str] = ()) -> Iterator[Standstill]:
    """Yield what waits, why, and the fix. Many tasks of a batch are shown as one.

    ``idle``: providers and models for which no task waits.
    """
    alone: list[Parking] = []
    of_batches: dict[tuple[str, Cause], list[Parking]] = {}
    for each in parked:
        if each.scope is Scope.TASK:
            of_batches.setdefault((each.name.partition("/")[0], each.cause), []).append(each)
        else:
            alone.append(each)
    for (batch, _), tasks in of_batches.items():
        if len(tasks) <= _MAX_NAMED_TASKS:
            alone += tasks
            continue
        as_one = replace(tasks[0], scope=Scope.BATCH, name=batch)
        yield _standstill(as_one, f"{len(tasks):,} tasks of {batch}")
    for each in alone:
        found = _standstill(each, words.named(each.scope, each.name))
        unused = each.scope.asked and bool(each.cause.reason) and each.name in idle
        yield replace(found, fix=f"{_UNUSED}; {found.fix}") if unused else found


def lines(parked: Iterable[Parking], idle: Collection[str] = ()) -> Iterator[str]:
    """Yield two lines for each: what waits and why, and the fix. See ``standstills``."""
    for each in standstills(parked, idle):
        state = "Paused" if each.paused else "Parked"
        yield escape(
            f"{state} since {moment(each.since)}: {each.what}. {each.why}".removesuffix(". ")
        )
        yield escape(f"  To go on: {each.fix}")


def _standstill(each: Parking, what: str) -> Standstill:
    paused = each.cause is Cause.PAUSED
    said = why(each.cause, each.message)
    return Standstill(
        since=each.since,
        what=what,
        why=said.removeprefix(Cause.PAUSED).removeprefix(": ") if paused else said,
        fix=_fix(each),
        paused=paused,
        scope=each.scope,
        name=each.name,
    )


def why(cause: str, message: str) -> str:
    """Return a parking's cause, and what was said of it; another version may know other causes."""
    return f"{cause}: {message}" if message != cause else cause


def _fix(each: Parking) -> str:
    resume = f"batchd resume {words.option(each.scope, each.name)}".rstrip()
    return each.cause.fix(resume, "batchd retry --failed --model PROVIDER/MODEL BATCH")
