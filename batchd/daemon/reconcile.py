"""After a store was put back to an earlier time: what it lacks, by what lies in the outbox.

A task whose result lies there never runs again: that is its end, and its money is booked. Any other
without an end in this store may have run since, and waits until a user decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.config import Config
from batchd.events import TaskFinished
from batchd.formats import ResultV1, SummaryV1
from batchd.records import Batch, Cause, Parking, Ref, Scope, Tally, TaskStatus, Tokens
from batchd.spool import claims, files, outbox
from batchd.spool.claims import Claim
from batchd.store import lookups, operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

#: Tasks whose commits are shared.
_CHUNK = 500
_RESULT: msgspec.json.Decoder[ResultV1] = decoders.decoder(ResultV1)
_SUMMARY: msgspec.json.Decoder[SummaryV1] = decoders.decoder(SummaryV1)
#: In the state directory: files of which no one knows whether they became a batch.
UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class OutboxResult:
    """The end of a task, from the outbox."""

    ref: Ref
    result: ResultV1
    #: Its bytes there.
    text: str


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """The plan of what is to be done."""

    found: list[OutboxResult] = field(default_factory=list)
    uncertain: list[Ref] = field(default_factory=list)
    #: Batches whose summary lies in the outbox, and all of whose tasks have an end.
    published: list[str] = field(default_factory=list)
    #: Request files of batches without an end that the store does not know.
    unknown: list[Path] = field(default_factory=list)
    #: Claimed files that the store does not know.
    claims: list[Claim] = field(default_factory=list)
    #: Outboxes of its batches that are not this one:
    #: what is left of them is written there, and what is pruned removed.
    others: list[str] = field(default_factory=list)


async def plan(store: Store, config: Config) -> ReconcilePlan:
    """Compare a store with the outbox and what lies claimed; nothing is changed."""
    known = await store.writer.submit(
        lambda journal: dict(journal.db.execute("SELECT name, outbox FROM batches").fetchall())
    )
    ours, made, restored = Path(config.paths.outbox), ReconcilePlan(), store.read(lookups.restore)
    made.others.extend(_others(ours, known))
    # What ended in this store and was not written yet, the daemon writes, to the same bytes.
    unpublished = {ref.batch for ref in restored.unpublished}
    waiting: dict[str, list[Ref]] = {}
    for queued in restored.queued:
        waiting.setdefault(queued.ref.batch, []).append(queued.ref)
    for batch in restored.batches:
        refs = waiting.get(batch.name, [])
        collected = _collected(batch) if refs else {}
        ends = [end for ref in refs if (end := _end(batch, ref, collected))]
        made.found.extend(ends)
        ended = {end.ref for end in ends}
        made.uncertain.extend(ref for ref in refs if ref not in ended)
        whole = len(ends) == len(refs) and batch.name not in unpublished
        if whole and _has_summary(Path(batch.folder)):
            made.published.append(batch.name)
    made.unknown.extend(_unknown(ours, known))
    claimed, _ = claims.lying(Path(config.paths.inbox), Path(config.paths.state))
    made.claims.extend(
        claim for claim in claimed if store.read(lookups.claimed, claim.ulid) is None
    )
    return made


async def carry_out(store: Store, made: ReconcilePlan) -> None:
    """Import what was found, and park what is uncertain. Can be repeated."""
    now = time.time()
    works = [partial(_import, store, end) for end in made.found]
    works += [partial(_park, store, ref, now) for ref in made.uncertain]
    for start in range(0, len(works), _CHUNK):
        await asyncio.gather(*(work() for work in works[start : start + _CHUNK]))
    for name in made.published:
        await store.write(operations.batch_published, name)


def set_aside(made: ReconcilePlan, state: Path) -> None:
    """Move claimed files that may have become batches since out of the daemon's way.

    Raises ``OSError``.
    """
    for claim in made.claims:
        target = state / UNCERTAIN / claim.path.name
        files.make_folder(target.parent, 0o700)
        files.move(claim.path, target)


async def _import(store: Store, end: OutboxResult) -> None:
    await store.writer.submit(partial(_adopt, end=end))
    await store.write(operations.published, end.ref)


def _adopt(journal: TaskTransaction, end: OutboxResult) -> None:
    """Store an end, and what it used beyond what is stored: on the day that it ended, as the
    agent's.
    """
    line, usage, cost = journal.line(end.ref), end.result.usage, end.result.cost
    known = line.tally
    tokens = {
        name: max(0, getattr(usage, name) - getattr(known, name))
        for name in Tokens.__struct_fields__
    }
    part = max(0.0, 1 - (known.cost_usd or 0.0) / cost.total) if cost.total else 0.0
    used = Tally(
        **tokens,
        cache_saved_usd=max(0.0, (cost.cache_saved or 0.0) - known.cache_saved_usd),
        estimated_calls=tokens["calls"] if usage.estimated else 0,
        unpriced_calls=tokens["calls"] if cost.total is None else 0,
        input_usd=(cost.input or 0.0) * part,
        output_usd=(cost.output or 0.0) * part,
        unsettled_calls=max(0, usage.unsettled_calls - known.unsettled_calls),
        unsettled_usd=max(0.0, (cost.unsettled or 0.0) - known.unsettled_usd),
    )
    at = datetime.fromisoformat(end.result.timing.finished_at).timestamp()
    status, reason = end.result.status, end.result.reason
    event = TaskFinished(at=at, status=status, reason=reason, result=end.text)
    journal.adopt(end.ref, event, used)


async def _park(store: Store, ref: Ref, now: float) -> None:
    message = (
        "the store is from an earlier time, so this may have run since: "
        f"`batchd resume {ref}` runs it, `batchd cancel {ref}` ends it"
    )
    await store.write(
        operations.park,
        Parking(scope=Scope.TASK, name=str(ref), cause=Cause.UNCERTAIN, message=message, since=now),
    )
    await store.write(
        operations.suspend, ref, None, TaskStatus.PARKED, message
    )  # so that it is shown


def _end(batch: Batch, ref: Ref, collected: Mapping[str, str]) -> OutboxResult | None:
    """Return a task's end, if the outbox has it whole."""
    data = _read(Path(batch.folder, f"{ref.task}.json"))
    text = collected.get(ref.task, "")
    if data is not None:
        text = data.decode("utf-8", "replace")
        if text.encode() != data:
            return None
    try:
        result = _RESULT.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return None
    ours = (result.schema, result.batch, result.task) == ("batchd/result/1", ref.batch, ref.task)
    return OutboxResult(ref, result, text) if ours and result.status.final else None


def _collected(batch: Batch) -> dict[str, str]:
    """Return the results of a batch as ``results.jsonl`` has them, where their own files may have
    been taken away, as the text of these.
    """
    texts = {}
    for line in (_read(Path(batch.folder, "results.jsonl")) or b"").splitlines():
        try:
            task = _RESULT.decode(line).task
        except msgspec.MsgspecError:
            continue
        texts[task] = msgspec.json.format(line, indent=2).decode() + "\n"
    return texts


def _others(ours: Path, known: Mapping[str, str]) -> list[str]:
    return sorted(each for each in {*known.values()} if Path(each).resolve() != ours.resolve())


def _unknown(folder: Path, known: Mapping[str, str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known and not path.is_symlink() and path.is_dir():
            requests = sorted(path.glob("request.*"))
            if requests and not _has_summary(path):
                yield requests[0]


def _has_summary(folder: Path) -> bool:
    try:
        summary = _SUMMARY.decode(_read(folder / outbox.SUMMARY) or b"")
    except (msgspec.MsgspecError, ValueError):
        return False
    return summary.batch == folder.name


def _read(path: Path) -> bytes | None:
    """Return what a regular file holds; None where there is none.

    Raises ``OSError``: a result that cannot be read may be there.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return files.content(path, sys.maxsize)
    return None
