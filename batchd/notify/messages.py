"""What a receiver is sent: events, made of what the daemon reports, in words for people and fields
for programs; and messages of them, one event as it is, many in one, with a subject and a text.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from batchd import decoders
from batchd.errors import Problem, cut
from batchd.formats import SummaryTaskV1, SummaryV1
from batchd.log import escape
from batchd.masking import Masker
from batchd.notify.format import (
    BatchV1,
    BudgetV1,
    DaemonV1,
    EventV1,
    FailuresV1,
    NotificationV1,
    ProviderV1,
)
from batchd.records import Batch, Parking, Scope, TaskStatus
from batchd.results import timestamp
from batchd.spool.ulid import time_of, ulid
from batchd.version import __version__
from batchd.views import view
from batchd.words import counted, duration, money, percent

if TYPE_CHECKING:
    from batchd.daemon.listeners import (
        StartReport,
    )  # it would load the daemon, which `batchd notify` does not need

#: Errors of a refused file that are listed; its summary has all.
_MOST_ERRORS = 10
#: Characters of what somebody else said.
_QUOTED = 300
#: The most important first: they stand at the top, and where there are too many, they stay.
_RANKS = (
    *("test", "provider_parked", "budget_reached", "batch_rejected", "batch_failed"),
    *("daemon_started", "provider_resumed", "batch_completed"),
)
#: Events that a message carries; more are counted.
MOST_EVENTS = 50
#: Events that are shown in full; of more, the headlines.
_IN_FULL = 10
_LONGEST_SUBJECT = 200
#: What programs go by is of words of ours alone:
#: a password that happens to be one of them is not to be found there.
_OURS = frozenset({"id", "event", "at", "since", "scope", "cause", "status", "reason"})


def batch_ended(batch: Batch, summary: str, at: float) -> EventV1:
    """Return the end of a batch, from the text of its summary."""
    s = decoders.decode(summary, SummaryV1)
    done = s.counts[TaskStatus.COMPLETED]
    found = BatchV1(
        name=batch.name,
        folder=batch.folder,
        retry_of=s.retry_of,
        counts=s.counts,
        total=s.total,
        success_rate=s.success_rate,
        total_tokens=s.usage.total_tokens,
        cost_usd=s.cost.total,
        unsettled_usd=s.cost.unsettled,
        wall_s=s.wall_s,
        failures=tuple(_failures(s.tasks)),
    )
    what = f"all {counted(s.total, 'task')} completed" if s.total != 1 else "its task is completed"
    if done < s.total:
        what = f"{done:,} of {counted(s.total, 'task')} completed"
    fix = (
        f"batchd status {batch.name} shows each task; batchd retry --failed {batch.name} runs "
        "again what did not complete"
    )
    return _event(
        "batch_completed" if done == s.total else "batch_failed",
        at,
        headline=f"batch {batch.name}{' was cancelled' if s.status == 'cancelled' else ''}: {what}",
        message="\n".join(_ended_lines(found, calls_unsettled=s.usage.unsettled_calls)),
        how_to_go_on="" if done == s.total else fix,
        batch=found,
    )


def batch_refused(batch: Batch, problems: Sequence[Problem], at: float) -> EventV1:
    """Return the refusal of a file."""
    errors = tuple(_quoted(str(problem)) for problem in problems[:_MOST_ERRORS])
    more = len(problems) - len(errors)
    lines = [*errors, *([f"… and {more:,} more, in summary.json"] if more else ())]
    return _event(
        "batch_rejected",
        at,
        headline=f"batch {batch.name} was rejected: {counted(len(problems), 'error')} in the file",
        message="\n".join((*lines, f"folder: {batch.folder}")),
        how_to_go_on="fix the file, and drop it again",
        batch=BatchV1(name=batch.name, folder=batch.folder, retry_of=batch.retry_of, errors=errors),
    )


def budget_spent(batch: str, message: str, at: float) -> EventV1:
    """Return the end of a batch's money or, without a name, of the day's."""
    if batch:
        headline = f"the budget of batch {batch} is reached"
        fix = f"what is left of it ends, out of money; batchd retry --failed {batch} runs that again, with a new budget"
    else:
        headline = "the day's budget is reached: everything waits"
        fix = "it goes on by itself at midnight UTC; or batchd tune budget.per_day_usd=…"
    budget = BudgetV1(scope="batch" if batch else "day", batch=batch or None)
    return _event(
        "budget_reached", at, headline=headline, message=message, how_to_go_on=fix, budget=budget
    )


def provider_parked(parking: Parking, fix: str, at: float) -> EventV1:
    """Return that no call may go to a provider, or one of its models."""
    return _event(
        "provider_parked",
        at,
        headline=f"tasks for {parking.scope} {parking.name} wait: {parking.cause}",
        message=_quoted(parking.message),
        how_to_go_on=fix.replace("`", ""),
        provider=_provider(parking),
    )


def provider_resumed(parking: Parking, at: float) -> EventV1:
    """Return that a provider, or one of its models, answers again."""
    return _event(
        "provider_resumed",
        at,
        headline=f"{parking.scope} {parking.name} answers again",
        message=f"its tasks waited for {duration(at - parking.since)}, with: {_quoted(parking.message)}",
        provider=_provider(parking),
    )


def daemon_started(start: StartReport, at: float) -> EventV1:
    """Return the start of the daemon."""
    how = ": the last one was killed, or the machine went down" if start.after_crash else ""
    left = "nothing is left from before"
    if start.batches:
        left = f"it goes on with {counted(start.tasks, 'task')} of {counted(start.batches, 'batch')}, so far"
    return _event(
        "daemon_started",
        at,
        headline=f"the daemon has started{how}",
        message=f"version {__version__}, process {os.getpid()}; {left}",
        daemon=DaemonV1(
            version=__version__,
            pid=os.getpid(),
            after_crash=start.after_crash,
            batches=start.batches,
            tasks=start.tasks,
        ),
    )


def test(name: str) -> EventV1:
    """Return what is sent to try a receiver out."""
    return _event(
        "test",
        time.time(),
        headline=f"a test of [notify.{name}]",
        message="If you can read this, it works.",
    )


def _quoted(text: str) -> str:
    """Return what others said on one line: more of them could pass for ours."""
    return cut(" ".join(text.split()), _QUOTED)


def _event(event: str, at: float, **fields: Any) -> EventV1:
    return EventV1(id=ulid(), event=event, at=timestamp(at), **fields)


def _provider(parking: Parking) -> ProviderV1:
    return ProviderV1(
        name=parking.name.partition("/")[0],
        cause=parking.cause,
        since=timestamp(parking.since),
        model=parking.name if parking.scope is Scope.MODEL else None,
    )


def _failures(tasks: Sequence[SummaryTaskV1]) -> Iterator[FailuresV1]:
    """Yield how tasks failed, the most frequent way first."""
    failed = [task for task in tasks if task.status is not TaskStatus.COMPLETED]
    for (status, reason), count in Counter((t.status, t.reason) for t in failed).most_common():
        first = next(t for t in failed if (t.status, t.reason) == (status, reason))
        yield FailuresV1(
            status=status,
            reason=reason,
            count=count,
            task=first.task,
            message=_quoted(first.message or ""),
        )


def _ended_lines(batch: BatchV1, *, calls_unsettled: int) -> Iterator[str]:
    refused = sum(f.count for f in batch.failures if not view.accepted(f.status, f.reason))
    counts = {
        "completed": batch.counts[TaskStatus.COMPLETED],
        "failed": batch.counts[TaskStatus.ERROR],
        view.NOT_ACCEPTED: refused,
        "timed out": batch.counts[TaskStatus.TIMEOUT] - refused,
        "cancelled": batch.counts[TaskStatus.CANCELLED],
    }
    tasks = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    yield f"tasks: {tasks} ({percent(batch.success_rate or 0.0)} success)"
    yield f"tokens: {batch.total_tokens:,}"
    more = ""
    if calls_unsettled:
        more = (
            f", and at most {money(batch.unsettled_usd)} more for calls without an answer on record"
        )
    yield f"cost: {money(batch.cost_usd)}{more}"
    yield f"time: {duration(batch.wall_s)}"
    yield f"folder: {batch.folder}"
    for each in batch.failures:
        said = f": {each.message}" if each.message else ""
        yield f"{each.count:,} {view.brief(each.status, each.reason)}, as {each.task}{said}"


# Messages


def clean(event: EventV1, masker: Masker) -> EventV1:
    """Return an event without secrets and control characters in any of its texts;
    its message alone has lines.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return escape(masker.text(value))
        if isinstance(value, dict):
            return {k: below if k in _OURS else cleaned(below) for k, below in value.items()}
        return [*map(cleaned, value)] if isinstance(value, list | tuple) else value

    # One that holds lone surrogates is no JSON yet: hence by way of Python's own values.
    made = decoders.convert(cleaned(msgspec.to_builtins(event)), EventV1)
    return replace(made, message="\n".join(cleaned(event.message.split("\n"))))


def compose(events: Sequence[EventV1], own: str) -> NotificationV1:
    """Return the message that reports these events, with its id; of too many the most important."""
    ranked = sorted(events, key=lambda event: _rank(event.event))
    more = Counter(event.event for event in ranked[MOST_EVENTS:])
    ranked = ranked[:MOST_EVENTS]
    others = f", and {len(events) - 1:,} more" if len(events) > 1 else ""
    host = escape(socket.gethostname())
    return NotificationV1(
        id=own,
        at=timestamp(time_of(own)),
        host=host,
        subject=f"[batchd {host}] {ranked[0].headline}{others}"[:_LONGEST_SUBJECT],
        text="\n".join(_text(ranked, more)).strip() + f"\n\n-- \nbatchd {__version__} on {host}\n",
        events=tuple(sorted(ranked, key=lambda event: event.id)),
        left_out=dict(more),
    )


def _rank(name: str) -> int:
    """Return how important an event is, 0 the most; last, one that an older version stored."""
    return _RANKS.index(name) if name in _RANKS else len(_RANKS)


def _text(ranked: Sequence[EventV1], more: Counter[str]) -> Iterator[str]:
    for index, event in enumerate(ranked):
        yield f"{event.at.replace('T', ' ').partition('.')[0]} UTC  {event.headline}"
        if index >= _IN_FULL:
            continue
        yield from (f"    {line}" for line in event.message.splitlines())
        if event.how_to_go_on:
            yield f"    To go on: {event.how_to_go_on}"
        yield ""
    if more:
        kinds = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in more.items())
        yield f"… and {more.total():,} more: {kinds}"
