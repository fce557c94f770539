"""How things stand, as pages are given it: plain values, bounded in number."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from batchd.control import fields
from batchd.control.status import RunningTask
from batchd.observe import standstill
from batchd.observe.status import Provider, Status
from batchd.records import Ref, Tally
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, SpendRow, TaskRow
from batchd.web.store_queries import Excerpts, StoreSight
from batchd.words import NO_TAG, Standstill, standstills

#: Lines of each list; how many there are is said.
_MAX_LINES = 50

#: Returns how the prompt of a batch's task begins, of none that of its first.
Excerpt: TypeAlias = Callable[[BatchRow, str], str]


def head(sight: StoreSight) -> dict[str, Any]:
    """Return what every page shows: whether a daemon runs,
    what it cannot do, what waits as a whole.
    """
    status = sight.status
    if status is None:
        return {
            "at": time.time(),
            "daemon": None,
            "silent": False,
            "trouble": sight.trouble,
            "parked": [],
        }
    return {
        "at": status.at,
        "daemon": _daemon(status),
        "silent": status.silent,
        "trouble": "",
        "parked": [*map(_standstill, islice(standstills(status.parked, status.idle), _MAX_LINES))],
    }


def overview(sight: StoreSight, excerpt: Excerpt) -> dict[str, Any]:
    """Return the first page."""
    value = head(sight)
    status = sight.status
    if status is None:
        return value
    left = [row for row in status.batches if row.finished < row.tasks]
    ended = [row for row in status.batches if row.finished >= row.tasks]
    known = {row.batch.name: row for row in status.batches}
    speed = status.speed

    def prompt(ref: Ref) -> str:
        row = known.get(ref.batch)
        return excerpt(row, ref.task) if row else ""

    return value | {
        "left": status.left,
        "queued": status.queued,
        "waiting": len(status.waiting),
        "held": status.held,
        "seconds_left": status.seconds_left and round(status.seconds_left),
        "speed": speed
        and {
            "tasks": round(speed.tasks_a_minute, 1),
            "tokens": round(speed.tokens_a_minute),
            "usd": round(speed.usd_a_minute, 4),
        },
        "running": len(status.agents),
        "agents": [
            agent(row, status.doing[row.ref], prompt(row.ref)) for row in status.agents[:_MAX_LINES]
        ],
        "providers": [*map(_provider, status.providers)],
        "open": len(left),
        "batches": [batch(row, excerpt(row, "")) for row in left[:_MAX_LINES]],
        "ended": [batch(row, excerpt(row, "")) for row in ended],
    }


def batch(row: BatchRow, prompt: str = "") -> dict[str, Any]:
    """Return a batch in a line. ``prompt``: how that of its first task begins."""
    return {
        "name": row.batch.name,
        "status": row.status,
        "tasks": row.tasks,
        **{status: getattr(row, status) for status in _STATUSES},
        **_tally(row.tally),
        "budget_usd": row.batch.budget_usd,
        "received_at": row.batch.received_at,
        "finished_at": row.finished_at,
        "retry_of": row.batch.retry_of,
        "folder": row.batch.folder,
        "prompt": prompt,
        "pruned": row.pruned,
        "problems": [str(each) for each in row.problems[:_MAX_LINES]],
    }


_STATUSES = ("completed", "timeout", "error", "cancelled", "running", "parked", "queued")


def task(row: TaskRow, why: str, doing: RunningTask | None, prompt: str = "") -> dict[str, Any]:
    """Return a task in a line.

    ``why``: what ended it, or what it waits for; ``prompt``: how that begins.
    """
    ended = row.finished_at
    return {
        "id": row.ref.task,
        "status": row.status,
        "reason": row.reason or "",
        "why": why,
        "model": row.model,
        "rounds": row.round,
        **_tally(row.tally),
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "finished_at": ended,
        "took_s": ended - row.started_at if ended and row.started_at else None,
        "since": row.since,
        "priority": row.priority,
        "attempts": row.attempts,
        "directory": row.directory,
        "after": row.after[:_MAX_LINES],
        "doing": doing and agent(row, doing),
        "prompt": prompt,
    }


def agent(row: TaskRow, doing: RunningTask, prompt: str = "") -> dict[str, Any]:
    """Return a task at work in a line."""
    return {
        "batch": row.ref.batch,
        "task": row.ref.task,
        "step": doing.step,
        "detail": doing.said[:200],
        "since": round(doing.since, 1),
        "model": row.model,
        "rounds": row.round,
        "calls": row.tally.calls,
        "prompt": prompt,
    }


def spent(row: SpendRow, name: str) -> dict[str, Any]:
    """Return a part of the ledger in a line."""
    return {"name": name, **_tally(row.tally), "usd": row.tally.known_usd}


def _tally(tally: Tally) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "tokens": tally.total_tokens,
        "input": tally.input_tokens,
        "cached": tally.cached_input_tokens,
        "output": tally.output_tokens,
        "estimated": tally.estimated,
        "estimated_calls": tally.estimated_calls,
        "usd": tally.cost_usd,
        "known_usd": tally.known_usd,
        "unpriced_calls": tally.unpriced_calls,
        "unsettled_calls": tally.unsettled_calls,
        "unsettled_usd": tally.unsettled_usd,
        # The part of the input that came from the provider's cache, and what it saved.
        "cache_share": tally.cache_share,
        "cache_saved": tally.cache_saved,
    }


def _daemon(status: Status) -> dict[str, Any] | None:
    daemon = status.daemon
    if daemon is None:
        return None
    return {
        "pid": daemon.pid,
        "version": daemon.version,
        "differs": standstill.differs(daemon.version),
        "started_at": daemon.started_at,
        "draining": daemon.draining,
        "workers": len(daemon.workers),
        "nodes": len({worker.node for worker in daemon.workers if worker.node}),
        "slots": daemon.slots,
        "day": daemon.day
        and {
            **fields(daemon.day),
            "cost_usd": status.spent_today_usd,
            "unsettled_usd": round(status.today.unsettled_usd, 8),
        },
        "troubles": [{**fields(each), "what": standstill.what(each)} for each in daemon.troubles],
    }


def _provider(each: Provider) -> dict[str, Any]:
    return {
        "name": each.name,
        "calls": round(each.rate.calls) if each.rate else None,
        "tokens": round(each.rate.tokens) if each.rate else None,
        "parked": [*map(_standstill, standstills(each.parked))],
        **fields(each.status),
    }


def _standstill(each: Standstill) -> dict[str, Any]:
    return {**fields(each), "mend": each.fix}


def parked(found: Iterable[Any]) -> list[dict[str, Any]]:
    """Return what waits, why, and how to go on."""
    return [*map(_standstill, islice(standstills(found), _MAX_LINES))]


#: Lines that are shown.
_MAX_ROWS = 100
#: No ledger goes back further, and a calendar not much.
_MOST_DAYS = 36_500
#: What money can be split by, and by which keys of the ledger.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "day": ("day",),
    "batch": ("batch",),
    "provider": ("provider",),
    "model": ("provider", "model"),
    "purpose": ("purpose",),
    "tag": ("tag",),
}


def cost(reader: StoreReader, by: str, days: int, prompts: Excerpts) -> Mapping[str, Any]:
    """Return what was spent within so many days, split up; 0: ever. Raises ``StoreError``."""
    back = dt.timedelta(days=min(days, _MOST_DAYS) - 1)
    since = dt.datetime.now(dt.UTC).date() - back if days else None
    split: Any = SPLITS[by]
    rows = reader.spend(split, since=since)
    lines = [spent(row, _name(row, split)) for row in rows]
    # Days as they went by, the newest first; of all else the dearest.
    lines.sort(key=lambda x: x["name"] if by == "day" else (x["usd"], x["input"]), reverse=True)
    daily = rows if by == "day" else reader.spend(("day",), since=since)
    each_day = sorted((spent(row, row.day) for row in daily), key=lambda x: x["name"])
    today = str(dt.datetime.now(dt.UTC).date())
    total = [spent(row, "total") for row in reader.spend((), since=since)]
    return {
        "by": by,
        "lines": [
            {**line, "prompt": prompts.line(reader, reader.batch(line["name"]))}
            if by == "batch"
            else line
            for line in lines[:_MAX_ROWS]
        ],
        "more": max(0, len(lines) - _MAX_ROWS),
        "total": total[:1],
        # What a chart shows: each day with a call, and from when to when.
        "days": each_day,
        "first": str(since) if since else each_day[0]["name"] if each_day else today,
        "last": max(today, each_day[-1]["name"]) if each_day else today,
    }


def _name(row: SpendRow, split: Sequence[str]) -> str:
    """Return what a line of the ledger is shown under; tasks without a tag have none."""
    return "/".join(NO_TAG if (part := getattr(row, name)) is None else part for name in split)
