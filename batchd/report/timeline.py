"""When tasks were at work, and in which of as few lanes as could have held them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchd.events import Event, Resumed, Suspended, TaskStarted
from batchd.report.content import Bar
from batchd.store.rows import TaskRow


@dataclass(frozen=True, slots=True)
class TimelineSpan:
    """A stretch of a task's life, in seconds since the epoch."""

    start: float
    end: float
    #: Without a slot: it waited for a provider, for money, or for somebody to let it go on.
    parked: bool = False


def spans(row: TaskRow, events: Sequence[Event], now: float) -> list[TimelineSpan]:
    """Return when a task had a slot, and when it was parked; a stop of the daemon is neither."""
    if row.started_at is None:
        return []
    ended = row.finished_at or now
    if not events or not isinstance(events[0], TaskStarted):
        return [_span(row.started_at, ended)]
    found, begun, last = [], events[0].at, events[0].at
    parked_at: float | None = None
    for event in events:
        if isinstance(event, Suspended):
            found.append(_span(begun, event.at))
            begun, parked_at = 0.0, event.at if event.cause == "park" else None
        elif isinstance(event, Resumed):
            if begun:  # its worker died; it is not known when
                found.append(_span(begun, last))
            if parked_at is not None:
                found.append(_span(parked_at, event.at, parked=True))
            begun, parked_at = event.at, None
        last = event.at
    if parked_at is not None:
        found.append(_span(parked_at, ended, parked=True))
    elif begun:
        found.append(_span(begun, ended))
    return found


def lanes(work: Iterable[tuple[int, TimelineSpan]]) -> tuple[int, list[Bar]]:
    """Put each task's stretch of work into the first lane that is free; return how many it took."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    count, bars = 0, []
    for task, span in sorted(work, key=lambda item: (item[1].start, item[0])):
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        heapq.heappush(busy, (span.end, lane))
        bars.append(Bar(task=task, lane=lane, start=span.start, end=span.end))
    return count, bars


def _span(start: float, end: float, *, parked: bool = False) -> TimelineSpan:
    # A clock that was set back must not turn a bar around.
    return TimelineSpan(round(start, 3), round(max(start, end), 3), parked)
