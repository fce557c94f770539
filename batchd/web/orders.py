"""What browsers may order: which request to the daemon it is,
what is asked before it is given, and what its answer says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from batchd import words
from batchd.control import (
    Cancel,
    Cancelled,
    ControlRequest,
    Pause,
    Paused,
    Resume,
    ResumedScope,
    Retry,
)
from batchd.control.requests import A
from batchd.errors import UsageError
from batchd.observe import standstill
from batchd.records import Ref, Scope, TaskStatus
from batchd.spool.ulid import ulid
from batchd.store.reader import StoreReader

#: Orders of the command line, by their names there.
Verb: TypeAlias = Literal["cancel", "pause", "resume", "retry"]


class WantedOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order as a page asks for it."""

    verb: Verb
    scope: Scope
    #: Of the batch, task (``BATCH/TASK``), provider or model.
    name: str = ""
    #: Of a retry: only what did not complete.
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOrder:
    """An order that is ready to be given."""

    request: ControlRequest[Any]
    #: What is asked before it is given.
    question: str
    #: The command that does the same, which needs no daemon.
    command: str
    #: Makes lines of the answer.
    lines: Callable[[Any], list[str]]


def ordered(reader: StoreReader, wanted: WantedOrder) -> WebOrder:
    """Return the order that is wanted.

    Raises ``UsageError``, and ``UnknownNameError`` for what there is not.
    """
    if wanted.verb in {"cancel", "retry"}:
        batch, task = _target(wanted)
        return (
            _cancelling(reader, batch, task)
            if wanted.verb == "cancel"
            else _retrying(reader, batch, task, failed=wanted.failed)
        )
    scope, name = wanted.scope, wanted.name
    if scope is Scope.DAY or bool(name) is (scope is Scope.ALL):
        raise UsageError(
            f"{wanted.verb} takes all, or the name of a provider, model, batch or task"
        )
    if scope in {Scope.BATCH, Scope.TASK}:
        _known(reader, *_target(wanted))
    return _pausing(scope, name) if wanted.verb == "pause" else _resuming(scope, name)


def _target(wanted: WantedOrder) -> tuple[str, str]:
    """Return the batch and the task that an order is about; no task: all of the batch.

    Raises ``UsageError``.
    """
    batch, slash, task = wanted.name.partition("/")
    if (
        not batch
        or wanted.scope is not (Scope.TASK if task else Scope.BATCH)
        or (slash and not task)
    ):
        raise UsageError(f"{wanted.verb} takes a batch or a task, with its name")
    return batch, task


def _known(reader: StoreReader, batch: str, task: str) -> None:
    """Return if there is such a batch or task. Raises ``UnknownNameError``."""
    if task:
        reader.task(Ref(batch, task))
    else:
        reader.batch(batch)


def _order(
    request: ControlRequest[A], question: str, command: str, lines: Callable[[A], list[str]]
) -> WebOrder:
    """Return an order whose lines are made of the answer that its request gets."""
    return WebOrder(request=request, question=question, command=command, lines=lines)


def _cancelling(reader: StoreReader, batch: str, task: str) -> WebOrder:
    name = f"{batch}/{task}" if task else batch
    if task:
        left = int(not reader.task(Ref(batch, task)).status.final)
    else:
        row = reader.batch(batch)
        left = row.tasks - row.finished
    if not left:
        raise UsageError(f"{name} has ended already: there is nothing to cancel")
    what = f"Cancel {words.named('task' if task else 'batch', name)}?"
    said = (
        "It ends now"
        if task
        else f"{words.counted(left, 'task')} that {'has' if left == 1 else 'have'} not ended end{'s' if left == 1 else ''} now"
    )
    question = (
        f"{what} {said}, as cancelled, and so does what comes after it. This cannot be taken back."
    )
    return _order(Cancel(target=(name,)), question, f"cancel {name}", _cancelled)


def _cancelled(answer: Cancelled) -> list[str]:
    over = [f"{each.target} has ended already" for each in answer.ended]
    return [f"{words.counted(answer.cancelled, 'task')} cancelled", *over]


def _retrying(reader: StoreReader, batch: str, task: str, *, failed: bool) -> WebOrder:
    name = f"{batch}/{task}" if task else batch
    if task:
        row = reader.task(Ref(batch, task))
        count, done = int(row.status.final), int(row.status is TaskStatus.COMPLETED)
    else:
        every = reader.batch(batch)
        count, done = every.finished, every.completed
    again = count - done if failed else count
    if not again:
        raise UsageError(
            f"nothing of {name} {'has failed' if failed else 'has ended'}: there is nothing to run again"
        )
    paid = (
        f" {words.counted(done, 'task')} completed before, and costs money again."
        if done and not failed
        else ""
    )
    what = "" if task else f" {words.counted(again, 'task')}, as a new batch."
    return _order(
        # The mark makes sure that an order whose answer is lost, and which is given again, is one.
        Retry(target=(name,), failed=failed, claim=ulid()),
        f"Run {words.named('task' if task else 'batch', name)} again{', what did not complete' if failed else ''}?{what}{paid}",
        f"retry {'--failed ' if failed else ''}{name}",
        lambda answer: [
            f"{run.batch}: {words.counted(run.tasks, 'task')} of {run.retry_of} queued again"
            for run in answer.runs
        ],
    )


def _pausing(scope: Scope, name: str) -> WebOrder:
    what = words.named(scope, name)

    def lines(answer: Paused) -> list[str]:
        return [f"{what} is paused: {words.counted(answer.parked, 'task')}"]

    question = f"Pause {what}? Nothing of it starts, and what runs stops at its next step, until it is resumed."
    return _order(
        Pause(scope=scope, name=name), question, f"pause {words.option(scope, name)}", lines
    )


def _resuming(scope: Scope, name: str) -> WebOrder:
    what = words.named(scope, name)

    def lines(answer: ResumedScope) -> list[str]:
        held = [standstill.why(each.cause, each.message) for each in answer.held]
        tried = [f"{each} is tried with one call first" for each in answer.trying]
        first = f"{what} goes on" if answer.resumed else f"{what}: nothing was parked"
        return [first, *tried, *(f"It still waits: {each}" for each in held)]

    question = f"Let {what} go on? What it starts costs money."
    return _order(
        Resume(scope=scope, name=name), question, f"resume {words.option(scope, name)}", lines
    )
