"""How things stand at one moment: as the daemon says, where one runs, and as the store has it."""

from __future__ import annotations

import datetime as dt
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Generic, Self, TypeVar

from msgspec import Struct, field, structs

from batchd import control, trees
from batchd.control import DaemonStatus
from batchd.control.status import ProviderStatus, RunningTask
from batchd.errors import NoAnswerError, NoDaemonError, StoreError
from batchd.observe.standstill import WaitReasons
from batchd.records import Parking, Ref, Scope, Tally, TaskStatus
from batchd.store import lookups, queries
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import last
from batchd.views.kinds import command

T = TypeVar("T")


class Speed(Struct, frozen=True, kw_only=True):
    """What was done lately."""

    #: Over how long it was measured (seconds).
    over_s: float
    tasks_a_minute: float
    tokens_a_minute: float
    usd_a_minute: float


class AnswerRate(Struct, frozen=True):
    """What a provider answered in a minute."""

    calls: float = 0.0
    tokens: float = 0.0


class Provider(Struct, frozen=True, kw_only=True):
    """A provider that was called since the daemon started, or that is parked."""

    name: str
    status: ProviderStatus
    #: What it answered in the last minute; None until there is something to measure.
    rate: AnswerRate | None = None
    #: Why nothing is sent to it.
    parked: tuple[Parking, ...] = ()


class Status(Struct, frozen=True, kw_only=True):
    """How things stand: what ``status``, ``top`` and pages show."""

    #: Seconds since the epoch.
    at: float = field(default_factory=time.time)
    #: What the daemon says of itself; None where none runs, and where it is ``silent``.
    daemon: DaemonStatus | None = None
    #: Whether one runs, and does not answer.
    silent: bool = False
    #: Why the store cannot be read; empty: it can.
    trouble: str = ""
    #: Those that were asked for.
    batches: tuple[BatchRow, ...] = ()
    #: Tasks at work, longest first, …
    agents: tuple[TaskRow, ...] = ()
    #: … and what is done for each, by the daemon's word or else the store's.
    doing: Mapping[Ref, RunningTask] = field(default_factory=dict)
    #: Tasks that gave their slot back, longest first.
    waiting: tuple[TaskRow, ...] = ()
    #: What waits as a whole, and why.
    parked: tuple[Parking, ...] = ()
    #: Of these, the providers and models for which no task waits.
    idle: frozenset[str] = frozenset()

    # What only an observer knows, which looks again and again

    #: What was spent today, as the ledger has it.
    today: Tally = Tally()
    #: Tasks that wait for something else than their turn: they are parked, or what they need is.
    held: int = 0
    #: None until there is something to measure.
    speed: Speed | None = None
    #: What each provider answered in the last minute.
    rates: Mapping[str, AnswerRate] = field(default_factory=dict)
    #: Of tasks at work and of those that ended lately, which are the newest first; what those at
    #: work ran last. Empty, unless the observer was asked for it.
    prompts: Mapping[Ref, str] = field(default_factory=dict)
    commands: Mapping[Ref, str] = field(default_factory=dict)
    ended: tuple[TaskRow, ...] = ()

    @property
    def runs(self) -> bool:
        """Whether a daemon runs."""
        return self.daemon is not None or self.silent

    @property
    def unheard(self) -> str:
        """What people read where no daemon says how it does."""
        if self.silent:
            return "The daemon does not answer: what follows is what the store says."
        rest = "; what has not ended goes on then" if self.left else ""
        return f"No daemon runs here; `batchd serve` starts one{rest}."

    @property
    def spent_today_usd(self) -> float | None:
        """What is spent today; None where a price is missing, or no daemon says it."""
        day = self.daemon.day if self.daemon else None
        return None if day is None or self.today.unpriced_calls else day.spent_usd

    @property
    def left(self) -> int:
        """Tasks that have not ended."""
        return sum(b.tasks - b.finished for b in self.batches)

    @property
    def queued(self) -> int:
        """Tasks that have not begun."""
        return sum(b.queued for b in self.batches)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this speed, without what is held; None where that cannot be
        known: nothing is at work, or all the rest is, and one call may take long.
        """
        rest = self.left - self.held
        if self.speed is None or not self.speed.tasks_a_minute or not 0 < len(self.agents) < rest:
            return None
        return rest / self.speed.tasks_a_minute * 60

    @property
    def providers(self) -> tuple[Provider, ...]:
        """By name: those that the daemon names, and those that are parked."""
        shown = self.daemon.providers if self.daemon else {}
        held: dict[str, list[Parking]] = {name: [] for name in shown}
        for each in self.parked:
            if each.scope is Scope.PROVIDER:
                held.setdefault(each.name, []).append(each)
        return tuple(
            Provider(
                name=name,
                status=shown.get(name, ProviderStatus()),
                rate=self.rates.get(name),
                parked=tuple(why),
            )
            for name, why in sorted(held.items())
        )


class Unseen(enum.Enum):
    """Why no daemon says how it does."""

    #: None runs.
    ABSENT = enum.auto()
    #: One does, and does not answer.
    SILENT = enum.auto()


#: What the daemon gets to say how it does: the store says the rest (seconds).
_PATIENCE_S = 3.0


def ask(state: Path) -> DaemonStatus | Unseen:
    """Return what the daemon says of itself, or why there is nothing to be seen of it."""
    try:
        return control.ask(state, control.AskStatus(), timeout_s=_PATIENCE_S)
    except NoAnswerError:
        return Unseen.SILENT
    except NoDaemonError:
        return Unseen.ABSENT


def standing(
    answer: DaemonStatus | Unseen,
    reader: StoreReader | None = None,
    batches: Sequence[BatchRow] = (),
) -> Status:
    """Return how things stand, of these batches. Raises ``StoreError``.

    ``reader``: the store; None: there is none yet.
    """
    daemon = answer if isinstance(answer, DaemonStatus) else None
    seen = Status(daemon=daemon, silent=answer is Unseen.SILENT, batches=tuple(batches))
    if reader is None:
        return seen
    rows = reader.running()
    again = {(p.scope, p.name, p.cause): p.again_at for p in (daemon.parked if daemon else ())}
    parked = tuple(
        replace(p, again_at=again.get((p.scope, p.name, p.cause))) for p in reader.parked()
    )
    said = {each.task: each for each in daemon.running} if daemon else {}
    agents = tuple(row for row in rows if row.status is TaskStatus.RUNNING)
    return structs.replace(
        seen,
        agents=agents,
        doing={row.ref: said.get(str(row.ref)) or _stored(row) for row in agents},
        waiting=tuple(row for row in rows if row.status is TaskStatus.PARKED),
        parked=parked,
        idle=reader.read(queries.idle, parked),
    )


def wait_reasons(reader: StoreReader, tasks: Sequence[TaskRow], status: Status) -> WaitReasons:
    """Return what says why tasks, of one batch, wait."""
    left = [task for task in tasks if not task.status.final]
    after = {name for task in left for name in task.after}
    behind = reader.read(lookups.left, left[0].ref.batch, after) if after else set[Ref]()
    queued = next((task.ref.batch for task in left if not task.attempts), None)
    begun = reader.begun() if queued else ()
    earlier = {queued: reader.read(lookups.open_before, queued)} if queued else {}
    return WaitReasons(status.parked, begun, behind, earlier=earlier, daemon=status.runs)


def prompt(reader: StoreReader, ref: Ref) -> str:
    """Return a task's prompt; empty once it was pruned."""
    try:
        return reader.prompt(ref)
    except StoreError:
        return ""


def doing(state: Path, row: TaskRow) -> RunningTask:
    """Return what is done for a running task:
    as the daemon says, or, where none does, as the store knows.
    """
    answer = ask(state)
    running = answer.running if isinstance(answer, DaemonStatus) else ()
    return next((each for each in running if each.task == str(row.ref)), _stored(row))


def _stored(row: TaskRow) -> RunningTask:
    return RunningTask(task=str(row.ref), step=last(row.step).then, detail="", since=row.since)


#: Of batches that have ended, so many are shown too.
_ENDED = 10
#: What ended longer ago is not lately (seconds).
_LATELY_S = 6 * 3600.0
#: Of the time, what each question may take at most that looks at many tasks:
#: there may be 100,000.
_SHARE = 0.01


class Seldom(Generic[T]):
    """The answer to a question that is asked not more often than it is worth."""

    def __init__(self) -> None:
        self._due = 0.0
        self._known: tuple[object, T] | None = None

    def ask(self, question: Callable[[], T], about: object = None) -> T:
        """Return the answer: the last one, unless that is old, or was ``about`` something else."""
        begun = time.monotonic()
        if self._known is None or begun >= self._due or about != self._known[0]:
            self._known = about, question()
            self._due = begun + (time.monotonic() - begun) / _SHARE
        return self._known[1]


class Observer:
    """Looks at a spool again and again. A context manager that closes itself."""

    def __init__(self, state: Path, *, lately: int = 0) -> None:
        """``lately``: so many tasks that ended lately are shown,
        with prompts and last commands of those at work; 0: nothing of it.
        """
        self._state = state
        self._store = state / "batchd.db"
        #: Which file that was when it was seen last.
        self._file: tuple[int, int] | None = None
        self._reader: StoreReader | None = None
        self._speed = Seldom[Speed | None]()
        self._rates = Seldom[dict[str, AnswerRate]]()
        self._held = Seldom[int]()
        self._texts = TaskTexts(lately)

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
            self._reader = StoreReader(self._store)
        return self._reader

    def look(self) -> Status:
        """Return how things stand now, with the batches that have not ended, oldest first, and then
        those that ended last, newest first. Raises ``StoreError`` where the store cannot be read.
        """
        answer = ask(self._state)
        if (file := trees.identity(self._store)) != self._file:
            self.close()  # a backup was put in its place
            self._file = file
        if file is None:
            return standing(answer)
        try:
            reader = self.reader
            left = reader.batches(unpublished=True)[::-1]
            names = {row.batch.name for row in left}
            latest = reader.batches(limit=_ENDED + len(left))
            ended = [row for row in latest if row.batch.name not in names]
            seen = standing(answer, reader, [*left, *ended[:_ENDED]])
            self._texts.look(reader, (*seen.agents, *seen.waiting))
            today = reader.spend((), since=dt.datetime.now(dt.UTC).date())
            parked = seen.parked
            held = self._held.ask(lambda: reader.read(queries.held, parked), parked)
            return structs.replace(
                seen,
                today=sum((spend.tally for spend in today), Tally()),
                held=max(held, sum(row.parked for row in seen.batches)),
                speed=self._speed.ask(partial(_speed, reader, left)),
                rates=self._rates.ask(partial(_rates, reader)),
                prompts=self._texts.prompts,
                commands=self._texts.commands,
                ended=self._texts.ended,
            )
        except StoreError:
            self.close()  # another may have been put in its place
            raise


#: How far back speed is measured: long enough for slow tasks,
#: short enough to show a change (seconds).
_WINDOW_S = 600.0
#: How far back the rates of providers are measured: their limits are of a minute (seconds).
_MINUTE_S = 60.0
#: Nothing is measured over a shorter time (seconds).
_MIN_SPAN_S = 5.0


def _speed(reader: StoreReader, left: Sequence[BatchRow]) -> Speed | None:
    """Return the speed up to now, of these batches, which have not ended, and of what else was
    done meanwhile; None: there is nothing to measure yet.
    """
    now = time.time()
    over = min(_WINDOW_S, now - min((row.batch.received_at for row in left), default=now))
    if over < _MIN_SPAN_S:
        return None
    done = reader.read(queries.done, now - over)
    tasks, tokens, usd = (each / over * 60 for each in astuple(done))
    return Speed(over_s=over, tasks_a_minute=tasks, tokens_a_minute=tokens, usd_a_minute=usd)


def _rates(reader: StoreReader) -> dict[str, AnswerRate]:
    """Return what each provider answered in the last minute, or since the first call in it."""
    now = time.time()
    lately = reader.read(queries.answered, now - _MINUTE_S)
    began = min((call.at - call.seconds for call in lately), default=now)
    minutes = min(_MINUTE_S, max(_MIN_SPAN_S, now - began)) / 60
    found: dict[str, AnswerRate] = {}
    for call in lately:
        known = found.get(call.provider, AnswerRate())
        found[call.provider] = AnswerRate(
            known.calls + 1 / minutes, known.tokens + call.tokens / minutes
        )
    return found


#: Tasks are looked at one by one, of those at work the first: no screen has more lines.
_MAX_TASKS = 100


class TaskTexts:
    """Prompts and commands of tasks; each is read once."""

    def __init__(self, most_ended: int) -> None:
        """``most_ended``: so many tasks that ended lately are looked at; 0: no task is."""
        self._most_ended = most_ended
        #: Of tasks at work, and of those that ended lately.
        self.prompts: Mapping[Ref, str] = {}
        #: Those, the newest first.
        self.ended: tuple[TaskRow, ...] = ()
        self._lately = Seldom[list[TaskRow]]()
        #: Each with what it was read at: as long as no more was done, it is the same.
        self._commands: dict[Ref, tuple[tuple[int, str, int], str]] = {}

    @property
    def commands(self) -> Mapping[Ref, str]:
        """What each task at work ran last, as people read it."""
        return {ref: said for ref, (_, said) in self._commands.items()}

    def look(self, reader: StoreReader, at_work: Sequence[TaskRow]) -> None:
        """Look at these tasks, which are at work, and at the others. Raises ``StoreError``."""
        if not self._most_ended:
            return
        since = time.time() - _LATELY_S
        lately = partial(reader.read, queries.ended, since, self._most_ended)
        self.ended = tuple(self._lately.ask(lately))
        rows = at_work[:_MAX_TASKS]
        self.prompts = {
            row.ref: self.prompts.get(row.ref) or " ".join(prompt(reader, row.ref).split())
            for row in (*rows, *self.ended)
        }
        self._commands = {row.ref: self._command(reader, row) for row in rows}

    def _command(self, reader: StoreReader, row: TaskRow) -> tuple[tuple[int, str, int], str]:
        mark = (row.tally.calls, row.step, row.round)
        known = self._commands.get(row.ref)
        if known and known[0] == mark:
            return known
        call = reader.read(queries.command, row.ref)
        return mark, " ".join(command(call).split()) if call else ""
