"""What the page is given: the one contract between Python and ``assets/*.js``, as JSON.

Money is in US dollars, durations are seconds, moments are seconds since the epoch. None: not known.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from batchd.events import Event, Resumed, Suspended, TaskStarted
from batchd.records import Price, Reason, Tally, TaskStatus
from batchd.store.rows import SpendRow, TaskRow


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContent:
    """One batch."""

    name: str
    #: From the page to its folder: empty, or ending in a slash.
    link: str
    received_at: float
    #: None: it has not ended.
    finished_at: float | None
    tasks: int
    #: As ``batchd status`` has it.
    status: str
    retry_of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Calls, tokens and money of a model, or of a purpose."""

    name: str
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    #: What is known of it: calls without a price are left out.
    usd: float
    #: Calls without a known price.
    unpriced_calls: int
    #: Calls whose tokens were counted here.
    estimated_calls: int
    unsettled_calls: int
    unsettled_usd: float
    #: The part of the input that came from the provider's cache,
    #: and what it saved; None: that is not known.
    cache_share: float | None = None
    cache_saved: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one machine did: the tasks whose last attempt it had."""

    #: Empty: the daemon's own.
    name: str
    tasks: int
    #: At work, and of that running commands.
    run_s: float
    tool_s: float
    #: What is known of it.
    usd: float
    #: Tasks of which more is not known.
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """What the same tokens would have cost with another model."""

    name: str
    usd: float | None
    #: Whether the price depends on the moment: it is its dearest one.
    dearest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Tasks that report the same thing in the same words, numbers apart."""

    message: str
    #: Places in the columns of ``TaskColumns``.
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Tasks that did not complete, for one reason."""

    status: str
    reason: str
    count: int
    #: What it means and how to go on, for people.
    advice: str
    causes: tuple[FailureGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """A task that changed what runs code when somebody uses its directory."""

    #: Its place in the columns of ``TaskColumns``.
    task: int
    directory: str
    #: Path, change, by and show of each, as the result has them; None: no one looked.
    files: tuple[Mapping[str, Any], ...] | None
    #: Files that are left out.
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A task in its slot, on the timeline."""

    #: Its place in the columns of ``TaskColumns``.
    task: int
    lane: int
    start: float
    end: float


@dataclass(slots=True, kw_only=True)
class TaskColumns:
    """Columns: one value a task each, all in the same order."""

    id: list[str] = field(default_factory=list)
    #: Which of ``Content.folders`` it belongs to.
    folder: list[int] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    message: list[str] = field(default_factory=list)
    #: How its prompt begins.
    prompt: list[str] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    estimated: list[int] = field(default_factory=list)
    usd: list[float | None] = field(default_factory=list)
    unsettled_usd: list[float] = field(default_factory=list)
    started_at: list[float | None] = field(default_factory=list)
    run_s: list[float | None] = field(default_factory=list)
    model_s: list[float | None] = field(default_factory=list)
    tool_s: list[float | None] = field(default_factory=list)
    #: The machine that its last attempt ran on; empty: the daemon's, or none.
    node: list[str] = field(default_factory=list)
    parked_s: list[float | None] = field(default_factory=list)
    #: The file beside the page that holds every step; empty: there is none.
    transcript: list[str] = field(default_factory=list)
    #: The link to its own directory, ending in a slash;
    #: empty: it has none, or it is not beside the page.
    own: list[str] = field(default_factory=list)
    #: Where its details stand among the blocks: first character and how many; 0, 0: not embedded.
    block: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that the page shows, details of tasks apart."""

    version: str
    title: str
    made_at: float
    folders: tuple[BatchContent, ...]
    counts: Mapping[str, int]
    #: From the first drop to the last end.
    wall_s: float
    #: At work, over all tasks.
    run_s: float
    total: Share
    models: tuple[Share, ...]
    purposes: tuple[Share, ...]
    #: A task with several tags is counted under each.
    tags: tuple[Share, ...]
    #: Empty where all ran on the daemon's machine.
    nodes: tuple[NodeShare, ...]
    elsewhere: tuple[Elsewhere, ...]
    setbacks: tuple[Setback, ...]
    cautions: tuple[Caution, ...]
    #: Orders that lead on, such as ``batchd retry NAME --failed``.
    orders: tuple[str, ...]
    lanes: int
    bars: tuple[Bar, ...]
    #: When tasks were without a slot; their ``lane`` says nothing.
    parked: tuple[Bar, ...]
    #: What is missing, and why.
    notes: tuple[str, ...]
    tasks: TaskColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """One task in full: a block of its own, deflated, read when it is opened."""

    prompt: str
    answer: str
    #: Both as ``observe.markdown`` reads them; None: plain words.
    prompt_tree: list[Any] | None
    answer_tree: list[Any] | None
    directory: str
    evaluation: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    files: Mapping[str, Any] | None
    #: As ``observe.changes`` gives it; None: there is none.
    patch: Mapping[str, Any] | None
    usage: Mapping[str, Any] | None
    timing: Mapping[str, Any] | None
    tags: tuple[str, ...]
    attempts: int
    #: Who worked on it last.
    worker: str
    #: What was cut off prompt and answer, in characters.
    left_out: int
    #: None: the transcript is not embedded.
    passages: tuple[Mapping[str, Any], ...] | None


@dataclass(frozen=True, slots=True)
class TimelineSpan:
    """A stretch of a task's life, in seconds since the epoch."""

    start: float
    end: float
    #: Without a slot: it waited for a provider, for money, or for somebody to let it go on.
    parked: bool = False


def spans_of(row: TaskRow, events: Sequence[Event], now: float) -> list[TimelineSpan]:
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


def lanes_of(work: Iterable[tuple[int, TimelineSpan]]) -> tuple[int, list[Bar]]:
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


_ADVICE: Mapping[Reason, str] = {
    Reason.MAX_ITERATIONS: "No round was accepted. Read the last verdict of one of them: make the task or its check"
    " clearer, or raise limits.max_iterations.",
    Reason.MAX_CALLS: "They were still at work at their last call. Raise limits.max_calls, or make the tasks smaller.",
    Reason.TOKENS: "They used up their tokens. Raise limits.max_tokens, or make the tasks smaller.",
    Reason.BUDGET: "What was left of the money was too little for the next call at its dearest. Raise limits.max_cost_usd, or"
    " the batch's budget_usd; or lower limits.max_output_tokens.",
    Reason.WALL_CLOCK: "They were still at work when their time was over. Raise limits.timeout_s.",
    Reason.AUTH: "The provider refused the key. Set a valid one, let `batchd check` confirm it, then retry.",
    Reason.QUOTA: "The account is empty. Top it up, then retry.",
    Reason.BAD_REQUEST: "The request was refused, by the provider or before it was sent, and would be again. The message"
    " says why; `batchd check` tries the model.",
    Reason.CONTENT_FILTER: "The provider's filter refused prompt or answer. Word the task differently, or take another"
    " model.",
    Reason.CONTEXT_OVERFLOW: "The request does not fit into the model's window. Make the task smaller, or take a model with a larger window.",
    Reason.PROVIDER_UNAVAILABLE: "The provider did not answer in spite of all retries. Retry once it is back.",
    Reason.EVALUATOR: "The judge gave no verdict that can be read. Give the tasks a check, or name another"
    " evaluation.judge_model.",
    Reason.LOOP: "The model repeated itself without getting on. A clearer task or another model helps.",
    Reason.SANDBOX: "Their commands could not be run. `batchd check` says what is missing.",
    Reason.DISK: "The disk took nothing more, or they hold more of it than they may: each message says which. Make room, or"
    " allow more in [sandbox], then retry.",
    Reason.WORKER_CRASHED: "The process that worked on them died each time, of memory perhaps. The daemon's log says"
    " more.",
    Reason.INTERNAL: "A fault of batchd's own. The daemon's log has the details; please report it.",
    Reason.USER: "Somebody cancelled them. Retry runs them again.",
    Reason.DEPENDENCY: "They come after tasks that did not complete. A retry of those takes these along.",
}


def advice(reason: str) -> str:
    """Return what a reason means, and how to go on."""
    return _ADVICE[Reason(reason)] if reason in _ADVICE else ""


def retry(batch: str) -> str:
    """Return the order that runs again what did not complete."""
    return f"batchd retry {batch} --failed"


#: Different messages that are shown of one reason; the rest is counted with the last.
_MOST_CAUSES = 8
#: What is cancelled is mostly a consequence of the rest.
_WEIGHTS = {"error": 0, "timeout": 1}
_NUMBER = re.compile(r"\d+")


def shares(rows: Iterable[SpendRow], name: Callable[[SpendRow], str]) -> tuple[Share, ...]:
    """Sum the ledger up by ``name``, dearest first."""
    groups: dict[str, list[SpendRow]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    found = (share(name, group) for name, group in groups.items())
    return tuple(sorted(found, key=lambda s: (-s.usd, -s.input_tokens - s.output_tokens, s.name)))


def share(name: str, rows: Sequence[SpendRow]) -> Share:
    """Sum rows of the ledger up."""
    tally = sum((row.tally for row in rows), Tally())
    known = {f.name: getattr(tally, f.name) for f in fields(Share) if hasattr(tally, f.name)}
    return Share(name=name, usd=tally.known_usd, **known)


def elsewhere(
    prices: Iterable[tuple[str, Price | None]], rows: Sequence[SpendRow]
) -> tuple[Elsewhere, ...]:
    """Return what the same tokens cost with other models, cheapest first, unknown prices last."""
    found = (
        Elsewhere(
            name=name,
            usd=sum(price.cost_of_many(row.tally).total for row in rows) if price else None,
            dearest=price is not None and bool(price.hours),
        )
        for name, price in prices
    )
    return tuple(sorted(found, key=lambda e: (e.usd is None, e.usd or 0.0, e.name)))


def nodes(tasks: TaskColumns) -> tuple[NodeShare, ...]:
    """Return what each machine did, the slowest for a task first;
    nothing where all ran on the daemon's.
    """
    groups: dict[str, list[int]] = {}
    for place, node in enumerate(tasks.node):
        if tasks.run_s[place] is not None:
            groups.setdefault(node, []).append(place)
    if not any(groups):
        return ()
    found = [
        NodeShare(
            name=name,
            tasks=len(places),
            run_s=sum(tasks.run_s[place] or 0.0 for place in places),
            tool_s=sum(tasks.tool_s[place] or 0.0 for place in places),
            usd=sum(tasks.usd[place] or 0.0 for place in places),
            unpriced=sum(tasks.usd[place] is None for place in places),
        )
        for name, places in groups.items()
    ]
    return tuple(sorted(found, key=lambda node: (-node.run_s / node.tasks, node.name)))


def setbacks(tasks: TaskColumns) -> tuple[Setback, ...]:
    """Group what did not complete by its reason: errors first,
    then the largest group; within it, by its words.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (status, reason) in enumerate(zip(tasks.status, tasks.reason, strict=True)):
        if reason and TaskStatus(status).final:
            groups.setdefault((status, reason), []).append(place)
    return tuple(
        Setback(
            status=status,
            reason=reason,
            count=len(places),
            advice=advice(reason),
            causes=_causes(tasks, places),
        )
        for (status, reason), places in sorted(groups.items(), key=_weight)
    )


def _weight(group: tuple[tuple[str, str], Sequence[int]]) -> tuple[int, int, str]:
    (status, reason), places = group
    return _WEIGHTS.get(status, 2), -len(places), reason


def _causes(tasks: TaskColumns, places: Sequence[int]) -> tuple[FailureGroup, ...]:
    alike: dict[str, list[int]] = {}
    for place in places:
        alike.setdefault(_NUMBER.sub("#", tasks.message[place]), []).append(place)
    found = sorted(alike.values(), key=lambda group: (-len(group), group[0]))
    shown, rest = found[:_MOST_CAUSES], found[_MOST_CAUSES:]
    causes = [FailureGroup(message=tasks.message[g[0]], tasks=tuple(g)) for g in shown]
    if rest:
        others = tuple(sorted(place for group in rest for place in group))
        causes.append(FailureGroup(message="other messages", tasks=others))
    return tuple(causes)
