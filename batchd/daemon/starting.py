"""What a worker is told when it takes a task up, or why none is to take it up."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

import msgspec

from batchd import terms, wire
from batchd.daemon import lessons, scratch
from batchd.daemon.active import Active
from batchd.daemon.core import Core
from batchd.errors import InputError, NotPossibleError
from batchd.events import Resumed, Suspended, TaskStarted, Terms, decode
from batchd.governor import Park, Refusal
from batchd.lifecycle import inputs
from batchd.lifecycle.effects import End
from batchd.records import Batch, Reason, Secret, Status, Task
from batchd.spool.directories import Directories
from batchd.store import Dispatched

#: How the journal's text of an answer begins, and of the next attempt.
_ANSWERED = b'["CallAnswered"'
_RESUMED = b'["Resumed"'


def prepared(
    core: Core, active: Active, task: Task, given: Dispatched, closed: str
) -> inputs.Ready | inputs.Refused | inputs.TurnedAway:
    """Return that a task can start, its terms set and its secrets known, or that it is not to start after all.

    ``closed``: why it may not work in its directory.
    """
    match _refusal(core, active, task, given, closed):
        case None:
            return inputs.Ready(active.ref)
        case Park() as park:
            active.park = park
            wish = Suspended(at=time.time(), cause="park", message=park.message)
            return inputs.TurnedAway(active.ref, wish)
        case status, reason, message:
            # This dispatch is none that was tried.
            attempts = given.attempt - 1
            return inputs.Refused(End(active.ref, status, reason, message, attempts))


def _refusal(
    core: Core, active: Active, task: Task, given: Dispatched, closed: str
) -> tuple[Status, Reason, str] | Park | None:
    if closed:
        why = f"its directory is none that tasks may work in now: {closed}"
        fix = f"allow it in [workspace], then `batchd retry {active.ref.batch}`"
        return Status.ERROR, Reason.SANDBOX, f"{why} ({fix})"
    kept = _kept(given.history)
    limits = core.config.limits.lowered(task.limits) if kept is None else kept.limits
    task = replace(task, limits=limits or task.limits)
    try:
        active.terms = _terms(core, active, task, given, kept)
    except InputError as error:
        waits = _without_provider(core, task)
        if isinstance(waits, Park):
            return waits
        return Status.ERROR, Reason.BAD_REQUEST, str(error)
    try:
        active.task = replace(task, secrets=_revealed(core, task))
    except NotPossibleError as error:
        return Status.ERROR, Reason.SANDBOX, f"its env cannot be made: {error}"
    return None


async def closed(core: Core, task: Task) -> str:
    """Return why a task may not work in its directory; empty: it may.

    It was asked at the claim: the configuration may be another one since, or the store come from elsewhere.
    """
    if not task.dir:
        return ""
    # In a thread: the file system may take its time.
    return await asyncio.to_thread(_refused, Directories(core.config), task.dir)


def _refused(directories: Directories, directory: str) -> str:
    if directories.real(directory) != os.path.normpath(directory):
        return ""  # a link stands there since, which no one follows: who opens it says so
    return directories.problem(directory, must_exist=False)


def _without_provider(core: Core, task: Task) -> Park | Refusal | None:
    """Return what becomes of a task whose provider is not configured any more; None: it is."""
    provider = task.model.partition("/")[0]
    if provider in core.config.providers:
        return None
    return core.governor.outages.turned_away(task.model)


def _revealed(core: Core, task: Task) -> dict[str, Secret]:
    """Return a task's secrets with their values. Raises ``NotPossibleError``."""
    reveal = core.config.revealed
    return {name: Secret(value=reveal(secret)) for name, secret in task.secrets.items()}


def order(core: Core, active: Active, batch: Batch, given: Dispatched) -> wire.Run:
    """Return what the worker is told; from now on the task's money is watched."""
    assert active.terms is not None, "there is no refusal"
    assert active.task is not None, "there is no refusal"
    ref, task = active.ref, active.task
    spent = core.store.task_money(ref).total if given.history else 0.0
    core.governor.money.open_task(ref, task.limits.max_cost_usd, spent)
    return wire.Run(
        ref=ref,
        attempt=given.attempt,
        task=task,
        batch=batch,
        terms=active.terms,
        queued_at=given.queued_at,
        tmp=str(scratch.folder(core, ref)),
        refused={
            name: lessons.known_of(core, name)
            for name in {active.terms.model.name, active.terms.judge.name}
        },
        history=tuple(msgspec.Raw(body) for body in given.history),
    )


def _terms(core: Core, active: Active, task: Task, given: Dispatched, kept: Terms | None) -> Terms:
    """Return the terms under which a task starts, or goes on. Raises ``InputError``."""
    capped = core.governor.capped(active.ref)
    if kept is None:
        return terms.terms(task, core.config, core.prices, capped=capped)
    if any(body.startswith(_ANSWERED) for body in given.history):
        return kept
    return _today(core, task, kept, capped=capped)


def _today(core: Core, task: Task, kept: Terms, *, capped: bool) -> Terms:
    """Return the terms of a task that no model has answered: today's, where it would be spoken to otherwise.

    What parked it may have been just that. A task under way ends as it began.
    """
    try:
        today = terms.terms(task, core.config, core.prices, capped=capped)
    except InputError:
        return kept
    same = (today.model.api, today.model.tools) == (kept.model.api, kept.model.tools)
    return kept if same else today


def _kept(history: tuple[bytes, ...]) -> Terms | None:
    """Return the terms that a task works under."""
    for body in reversed(history):
        if body.startswith(_RESUMED):
            resumed = decode(body)
            if isinstance(resumed, Resumed) and resumed.terms is not None:
                return resumed.terms
    first = decode(history[0]) if history else None
    return first.terms if isinstance(first, TaskStarted) else None
