"""How things stand at one moment: from the store, and from the daemon where one runs."""

from __future__ import annotations

import datetime as dt
import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from batchd import control
from batchd.control import DaemonStatus, status
from batchd.errors import NoAnswerError, NoDaemonError, StoreError
from batchd.observe.glimpses import Glimpsed, Glimpses
from batchd.observe.speed import AnswerRate, HeldMeter, RateMeter, Speed, SpeedMeter
from batchd.records import Parking, Scope, TaskStatus
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow, SpendRow, TaskRow
from batchd.views import last

#: What the daemon gets to say how it does: the store says the rest (seconds).
_PATIENCE_S = 3.0
#: Of batches that have ended, so many are shown too.
_ENDED = 10
_NOTHING = Glimpsed()


class Unseen(enum.Enum):
    """Why no daemon says how it does."""

    #: None runs.
    ABSENT = enum.auto()
    #: One does, and does not answer.
    SILENT = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSnapshot:
    """A task at work."""

    row: TaskRow
    step: str
    #: Which model, which command, what it waits for.
    detail: str
    #: When this step began, in seconds since the epoch.
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSnapshot:
    """A provider that was called since the daemon started, or that is parked."""

    name: str
    under_way: int = 0
    #: Calls that wait for their turn.
    waiting: int = 0
    #: How many may be under way.
    concurrent: int = 0
    #: Requests and tokens a minute, configured or found out; 0: no limit is known.
    rpm: float = 0.0
    tpm: float = 0.0
    #: What it answered in the last minute, and the tokens of that;
    #: None until there is something to measure.
    calls_a_minute: float | None = None
    tokens_a_minute: float | None = None
    #: How long it asked everybody to wait, from now (seconds).
    paused_s: float = 0.0
    #: Why nothing is sent to it.
    parked: tuple[Parking, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySnapshot:
    """The day's money in US dollars, counted in UTC; ``limit_usd`` 0: it has none."""

    limit_usd: float
    #: What may have been paid counts as spent.
    spent_usd: float
    reserved_usd: float
    #: Of what is spent, what calls without an answer on record may have cost at most:
    #: as the ledger has it.
    unsettled_usd: float = 0.0
    #: Whether calls of it have no known price, so that it is more than that.
    unpriced: bool = False

    @property
    def cost_usd(self) -> float | None:
        """What is spent; None where a price is missing."""
        return None if self.unpriced else self.spent_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSnapshot:
    """What a running daemon says of itself."""

    pid: int
    version: str
    started_at: float
    draining: bool
    workers: int
    #: Other machines that have workers.
    nodes: int = 0
    #: Agents that can be at work at once; 0: a daemon from before an upgrade does not say.
    slots: int
    #: None: such a daemon does not say either.
    day: DaySnapshot | None
    #: What it cannot do.
    troubles: tuple[control.OpenTrouble, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How things stand."""

    #: Seconds since the epoch.
    at: float
    #: None where no daemon runs; ``silent`` where one does not answer.
    daemon: DaemonSnapshot | None
    silent: bool
    agents: tuple[AgentSnapshot, ...]
    #: Tasks that gave their slot back, longest first.
    waiting: tuple[TaskRow, ...]
    #: Batches that have not ended, oldest first, then those that ended last, newest first.
    batches: tuple[BatchRow, ...]
    #: Tasks in them that have not begun.
    queued: int
    #: What waits as a whole, and why.
    parked: tuple[Parking, ...]
    #: Of these, the providers and models for which no task waits.
    idle: frozenset[str] = frozenset()
    providers: tuple[ProviderSnapshot, ...]
    #: Tasks that wait for something else than their turn: they are parked, or what they need is.
    held: int
    #: None until there is something to measure.
    speed: Speed | None
    #: Empty, unless the observer was asked for it.
    glimpsed: Glimpsed = _NOTHING

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        return sum(b.tasks - b.finished for b in self.batches)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this speed, without what is held;
        None where that cannot be known, or nothing is at work.
        """
        if self.speed is None or not self.speed.tasks_a_minute or not self.agents:
            return None
        return max(0, self.left - self.held) / self.speed.tasks_a_minute * 60


class Observer:
    """Looks at a spool again and again. A context manager that closes itself."""

    def __init__(self, state: Path, *, lately: int = 0) -> None:
        """``lately``: so many tasks that ended lately are shown,
        with prompts and last commands of those at work; 0: nothing of it.
        """
        self._state = state
        self._reader: StoreReader | None = None
        self._meter = SpeedMeter()
        self._rates = RateMeter()
        self._held = HeldMeter()
        self._glimpses = Glimpses(lately) if lately else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def reader(self) -> StoreReader:
        """The store. Raises ``StoreError`` where there is none yet, or none that can be read."""
        if self._reader is None:
            self._reader = StoreReader(self._state / "batchd.db")
        return self._reader

    def look(self) -> Snapshot:
        """Return how things stand now. Raises ``StoreError`` where the store cannot be read."""
        answer = ask(self._state)
        if not (self._state / "batchd.db").exists():
            self.close()
            return snapshot(answer)
        try:
            batches = self._batches()
            rows = self.reader.running()
            parked = self.reader.parked()
            idle = self.reader.idle(parked)
            speed = self._meter.measure(self.reader, batches)
            rates = self._rates.measure(self.reader)
            held = self._held.measure(self.reader, parked, batches)
            glimpsed = self._glimpses.look(self.reader, rows) if self._glimpses else _NOTHING
            today = self.reader.spend((), since=dt.datetime.now(dt.UTC).date())
        except StoreError:
            self.close()  # another may have been put in its place
            raise
        return snapshot(
            answer,
            batches=batches,
            rows=rows,
            parked=parked,
            idle=idle,
            held=held,
            speed=speed,
            rates=rates,
            today=today,
            glimpsed=glimpsed,
        )

    def _batches(self) -> list[BatchRow]:
        left = self.reader.batches(unpublished=True)[::-1]
        names = {row.batch.name for row in left}
        latest = self.reader.batches(limit=_ENDED + len(left))
        ended = [row for row in latest if row.batch.name not in names]
        return [*left, *ended[:_ENDED]]


def agent_at(state: Path, row: TaskRow) -> AgentSnapshot:
    """Return what is done for a running task:
    as the daemon says, or, where none does, as the store knows.
    """
    answer = ask(state)
    running = answer.running if isinstance(answer, DaemonStatus) else ()
    doing = (each for each in running if each.task == str(row.ref))
    return _agent(row, next(doing, None))


def ask(state: Path) -> DaemonStatus | Unseen:
    """Return what the daemon says of itself, or why there is nothing to be seen of it."""
    try:
        return control.ask(state, control.Status(), timeout_s=_PATIENCE_S)
    except NoAnswerError:
        return Unseen.SILENT
    except NoDaemonError:
        return Unseen.ABSENT


def snapshot(
    answer: DaemonStatus | Unseen,
    *,
    batches: Sequence[BatchRow] = (),
    rows: Sequence[TaskRow] = (),
    parked: tuple[Parking, ...] = (),
    idle: frozenset[str] = frozenset(),
    held: int = 0,
    speed: Speed | None = None,
    rates: Mapping[str, AnswerRate] | None = None,
    today: Sequence[SpendRow] = (),
    glimpsed: Glimpsed = _NOTHING,
) -> Snapshot:
    """Return a snapshot of what the daemon says and what the store has;
    ``today``: what was spent on this day.
    """
    known = answer if isinstance(answer, DaemonStatus) else None
    doing = {each.task: each for each in known.running} if known else {}
    return Snapshot(
        at=time.time(),
        daemon=_daemon(known, today) if known else None,
        silent=answer is Unseen.SILENT,
        agents=tuple(
            _agent(row, doing.get(str(row.ref))) for row in rows if row.status is TaskStatus.RUNNING
        ),
        waiting=tuple(row for row in rows if row.status is TaskStatus.PARKED),
        batches=tuple(batches),
        queued=sum(b.queued for b in batches),
        parked=parked,
        idle=idle,
        held=held,
        providers=tuple(_providers(known.providers if known else {}, parked, rates or {})),
        speed=speed,
        glimpsed=glimpsed,
    )


def _daemon(answer: DaemonStatus, today: Sequence[SpendRow]) -> DaemonSnapshot:
    day = answer.day
    return DaemonSnapshot(
        pid=answer.pid,
        version=answer.version,
        started_at=answer.started_at,
        draining=answer.draining,
        workers=len(answer.workers),
        nodes=len({worker.node for worker in answer.workers if worker.node}),
        slots=answer.slots,
        day=DaySnapshot(
            limit_usd=day.limit_usd,
            spent_usd=day.spent_usd,
            reserved_usd=day.reserved_usd,
            unsettled_usd=sum(spend.unsettled_usd for spend in today),
            unpriced=any(spend.unpriced_calls for spend in today),
        )
        if day
        else None,
        troubles=answer.troubles,
    )


def _agent(row: TaskRow, running: status.RunningTask | None) -> AgentSnapshot:
    if running is not None:
        detail = ": ".join(filter(None, (running.node, running.detail)))
        return AgentSnapshot(row=row, step=running.step, detail=detail, since=running.since)
    return AgentSnapshot(row=row, step=last(row.step).then, detail="", since=row.since)


def _providers(
    shown: Mapping[str, status.ProviderStatus],
    parked: tuple[Parking, ...],
    rates: Mapping[str, AnswerRate],
) -> Iterator[ProviderSnapshot]:
    held: dict[str, list[Parking]] = {name: [] for name in shown}
    for each in parked:
        if each.scope is Scope.PROVIDER:
            held.setdefault(each.name, []).append(each)
    for name, why in sorted(held.items()):
        rate, known = rates.get(name), shown.get(name, status.ProviderStatus())
        yield ProviderSnapshot(
            name=name,
            under_way=known.under_way,
            waiting=known.waiting,
            concurrent=known.concurrent,
            rpm=known.rpm,
            tpm=known.tpm,
            paused_s=known.paused_s,
            calls_a_minute=rate.calls if rate else None,
            tokens_a_minute=rate.tokens if rate else None,
            parked=tuple(why),
        )
