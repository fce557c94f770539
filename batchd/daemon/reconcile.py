"""After a store was put back to an earlier time:
what it does not know, and what lies in the outbox all the same.

A task that this store does not know the end of may have run since. Where its result lies in the
outbox, that is its end; where none does, its end is unknown, and it waits until a user decides.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from batchd import decoders
from batchd.config import Config
from batchd.events import TaskFinished
from batchd.formats import ResultV1, SummaryV1
from batchd.records import Batch, Cause, Parking, Purpose, Ref, Scope, TaskStatus
from batchd.spool import claims, files, outbox
from batchd.spool.claims import Claim
from batchd.store import Store
from batchd.store.fold import LedgerAmounts
from batchd.taskstate import TaskState, fold

T = TypeVar("T")

#: Things done in one go, whose commits are shared.
_CHUNK = 500
_RESULT: msgspec.json.Decoder[ResultV1] = decoders.decoder(ResultV1)
_SUMMARY: msgspec.json.Decoder[SummaryV1] = decoders.decoder(SummaryV1)
#: In the state directory: files of which no one knows whether they became a batch.
UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class OutboxResult:
    """The end of a task, from the outbox."""

    ref: Ref
    event: TaskFinished
    #: What it used that the store does not know, by purpose.
    used: Mapping[str, LedgerAmounts]

    @property
    def usd(self) -> float:
        """Money that the books gain."""
        return sum(t.input_usd + t.output_usd + t.unsettled_usd for t in self.used.values())


@dataclass(frozen=True, slots=True)
class UnknownBatch:
    """A batch in the outbox that the store does not know."""

    name: str
    #: Whether its summary is there.
    finished: bool
    #: Results in its folder.
    results: int
    #: Their money, which is not in the books.
    usd: float
    #: The dropped file.
    request: str


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """The plan of what is to be done."""

    found: list[OutboxResult] = field(default_factory=list)
    uncertain: list[Ref] = field(default_factory=list)
    #: Batches whose summary lies in the outbox,
    #: with their tasks that ended and count as unpublished.
    published: dict[str, list[Ref]] = field(default_factory=dict)
    strangers: list[UnknownBatch] = field(default_factory=list)
    #: Claimed files that the store does not know.
    claims: list[Claim] = field(default_factory=list)
    #: Where the store's newest batch went, if none ever went to this outbox:
    #: it is another spool's, or that was moved.
    elsewhere: str = ""
    #: All outboxes of its batches that are not this one:
    #: what is left of them is written there, and what is pruned removed.
    others: tuple[str, ...] = ()


async def plan(store: Store, config: Config) -> ReconcilePlan:
    """Compare a store with the outbox and what lies claimed; nothing is changed."""
    outboxes = await store.writer.submit(
        lambda journal: journal.db.execute(
            "SELECT outbox FROM batches GROUP BY outbox ORDER BY max(id) DESC"
        ).fetchall()
    )
    others = _others(outboxes, config)
    # The newest comes first.
    elsewhere = others[0] if others and len(others) == len(outboxes) else ""
    made, restored = ReconcilePlan(elsewhere=elsewhere, others=others), store.restore()
    waiting: dict[str, list[Ref]] = {}
    for queued in restored.queued:
        waiting.setdefault(queued.ref.batch, []).append(queued.ref)
    for batch in restored.batches:
        refs = waiting.get(batch.name, [])
        lines = _collected(batch) if refs else {}
        uncertain = []
        for ref in refs:
            end = _end(store, batch, ref, lines)
            if end is None:
                uncertain.append(ref)
            else:
                made.found.append(end)
        made.uncertain.extend(uncertain)
        if not uncertain and _summary(Path(batch.folder)) is not None:
            ended = [ref for ref in restored.unpublished if ref.batch == batch.name]
            made.published[batch.name] = ended
    known = await store.writer.submit(
        lambda journal: {name for (name,) in journal.db.execute("SELECT name FROM batches")}
    )
    made.strangers.extend(_strangers(Path(config.paths.outbox), known))
    made.claims.extend(_claims(store, config))
    return made


def _others(outboxes: Sequence[tuple[str]], config: Config) -> tuple[str, ...]:
    """Return which of the outboxes are not ours."""
    ours = Path(config.paths.outbox).resolve()
    return tuple(outbox for (outbox,) in outboxes if Path(outbox).resolve() != ours)


async def carry_out(store: Store, made: ReconcilePlan) -> None:
    """Import what was found, and park what is uncertain. Can be repeated."""
    await _together(partial(_import, store, found) for found in made.found)
    for name, ended in made.published.items():
        await _together(partial(store.published, ref) for ref in ended)
        await store.batch_published(name)
    now = time.time()
    await _together(partial(_park, store, ref, now) for ref in made.uncertain)


async def _together(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Do many things whose commits are shared."""
    for chunk in _batched(works, _CHUNK):
        await asyncio.gather(*(work() for work in chunk))


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield tuples of at most ``size`` items."""
    rest = iter(items)
    while chunk := tuple(islice(rest, size)):
        yield chunk


async def _import(store: Store, found: OutboxResult) -> None:
    await store.writer.submit(lambda journal: journal.adopt(found.ref, found.event, found.used))
    await store.published(found.ref)


async def _park(store: Store, ref: Ref, now: float) -> None:
    message = (
        "the store is from an earlier time, so this may have run since: "
        f"`batchd resume {ref}` runs it, `batchd cancel {ref}` ends it"
    )
    await store.park(
        Parking(scope=Scope.TASK, name=str(ref), cause=Cause.UNCERTAIN, message=message, since=now)
    )
    await store.suspend(ref, None, TaskStatus.PARKED, message)  # so that it is shown


def set_aside(made: ReconcilePlan, state: Path) -> None:
    """Move claimed files that may have become batches since out of the daemon's way.

    Raises ``OSError``.
    """
    for claim in made.claims:
        target = state / UNCERTAIN / claim.path.name
        files.make_folder(target.parent, 0o700)
        files.move(claim.path, target)


def _claims(store: Store, config: Config) -> list[Claim]:
    """Return our claimed files that the store does not know."""
    ours, _ = claims.lying(Path(config.paths.inbox), Path(config.paths.state))
    return [claim for claim in ours if store.claimed(claim.ulid) is None]


def _end(store: Store, batch: Batch, ref: Ref, lines: Mapping[str, str]) -> OutboxResult | None:
    """Return a task's end, if the outbox has it."""
    data = _read(Path(batch.folder, f"{ref.task}.json"))
    text = data.decode("utf-8", "replace") if data is not None else lines.get(ref.task, "")
    result = _result(text)
    if result is None or (result.batch, result.task) != (ref.batch, ref.task):
        return None
    if not result.status.final or (data is not None and text.encode() != data):
        return None
    used = _used(result, fold(result.first_prompt, store.events(ref)))
    if used is None:
        return None
    at = datetime.fromisoformat(result.timing.finished_at).timestamp()
    event = TaskFinished(at=at, status=result.status, reason=result.reason, result=text)
    return OutboxResult(ref, event, used)


def _used(result: ResultV1, known: TaskState) -> dict[str, LedgerAmounts] | None:
    """Return what a result counts beyond the journal, by purpose;
    None where it counts less: it is another run's.

    A result does not split its money by purpose: it is booked as the agent's, or as that of the
    only purpose that made calls.
    """
    used = {}
    for purpose in Purpose:
        theirs, ours = result.usage.by_purpose.get(purpose), known.spend.get(purpose)
        if theirs is None:
            continue
        tally = LedgerAmounts()
        for name in (
            *("calls", "input_tokens", "cached_input_tokens"),
            *("cache_write_tokens", "cache_write_long_tokens", "cache_reported_tokens"),
            *("output_tokens", "reasoning_tokens"),
        ):
            more = getattr(theirs, name) - (getattr(ours.usage, name) if ours else 0)
            if more < 0:
                return None
            setattr(tally, name, more)
        tally.estimated_calls = tally.calls if theirs.estimated else 0
        tally.unpriced_calls = tally.calls if result.cost.total is None else 0
        if tally.calls:
            used[purpose.value] = tally
    payer = used.get(Purpose.AGENT) or next(iter(used.values()), None) or LedgerAmounts()
    used = used or {Purpose.AGENT.value: payer}
    payer.cache_saved_usd = (result.cost.cache_saved or 0.0) - (known.cache_saved_usd or 0.0)
    costs = [spend.cost for spend in known.spend.values() if spend.cost]
    cost = result.cost
    payer.input_usd = max(0.0, (cost.input or 0.0) - sum(c.input for c in costs))
    payer.output_usd = max(0.0, (cost.output or 0.0) - sum(c.output for c in costs))
    payer.unsettled_calls = max(0, result.usage.unsettled_calls - known.unsettled_calls)
    payer.unsettled_usd = max(0.0, (cost.unsettled or 0.0) - known.unsettled_usd)
    return used


def _collected(batch: Batch) -> dict[str, str]:
    """Return the results of a batch as ``results.jsonl`` has them,
    as the text of their own files.
    """
    data = _read(Path(batch.folder, "results.jsonl")) or b""
    texts = {}
    for line in data.splitlines():
        try:
            task = _RESULT.decode(line).task
        except msgspec.MsgspecError:
            continue
        texts[task] = msgspec.json.format(line, indent=2).decode() + "\n"
    return texts


def _strangers(folder: Path, known: set[str]) -> Iterator[UnknownBatch]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in known or path.is_symlink() or not path.is_dir():
            continue
        names = sorted(os.listdir(path))
        requests = [name for name in names if name.partition(".")[0] == "request"]
        summary = _summary(path)
        if not requests and summary is None:
            continue  # no batch: another folder that is kept there
        results = [r for n in names if n.endswith(".json") and (r := _result(_text(path / n)))]
        usd = sum((r.cost.total or 0.0) + (r.cost.unsettled or 0.0) for r in results)
        request = str(path / requests[0]) if requests else ""
        yield UnknownBatch(path.name, summary is not None, len(results), usd, request)


def _result(text: str) -> ResultV1 | None:
    try:
        result = _RESULT.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return None
    return result if result.schema == "batchd/result/1" else None


def _summary(folder: Path) -> SummaryV1 | None:
    try:
        summary = _SUMMARY.decode(_read(folder / outbox.SUMMARY) or b"")
    except (msgspec.MsgspecError, ValueError):
        return None
    return summary if summary.batch == folder.name else None


def _text(path: Path) -> str:
    return (_read(path) or b"").decode("utf-8", "replace")


def _read(path: Path) -> bytes | None:
    """Return what a regular file holds; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
