"""``batchd status``: batches, the tasks of one, or one task;
from the store, with or without a daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType, to_builtins

from batchd import config, formats, silent_paths, users, words
from batchd.cli import orders
from batchd.cli.display import formatting, status_text, summary_text
from batchd.cli.member_reader import MemberReader, fresh
from batchd.config import trust
from batchd.control import DaemonStatus, OpenTrouble
from batchd.errors import BatchdError, UnknownNameError, UsageError
from batchd.formats import RunsCodeV1
from batchd.log import escape
from batchd.observe import standstill
from batchd.observe.status import Status, Unseen, ask, standing, wait_reasons
from batchd.records import Parking, Ref, TaskStatus
from batchd.spool import claims, outbox
from batchd.store import lookups, queries
from batchd.store.queries import StoreReader
from batchd.store.rows import TaskRow
from batchd.store.shown import BatchJson, TaskJson
from batchd.words import moment

#: More batches than any store has, and SQLite can count.
_ALL_BATCHES = 10**15
#: Of larger batches the first tasks' prompts are shown: to read them takes time.
_MOST_PROMPTS = 2_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="BATCH[/TASK]", help="else all batches")
    parser.add_argument(
        "--failed", action="store_true", help="of BATCH, only tasks that ended and did not complete"
    )
    parser.add_argument("-n", "--last", type=int, default=20, help="that many batches (20; 0: all)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Show how things stand."""
    state = formatting.state_directory(args.config)
    if users.barred(state):
        return _as_member(state, args)
    daemon = ask(state)
    if isinstance(daemon, DaemonStatus):
        formatting.complain(standstill.differs(daemon.version))
    batch, task = words.split_target(args.target) if args.target else ("", "")
    if args.failed and (task or not batch):
        raise UsageError("--failed shows tasks of one batch: batchd status --failed BATCH")
    if daemon is Unseen.ABSENT and not args.json:
        for refusal in orders.refusals(state):
            formatting.complain(f"A daemon would not start here: {refusal}.")
    store = formatting.store_path(state)
    if not batch and not store.exists():
        # Nothing has been dropped yet: that is no error.
        _overview(standing(daemon), args, state)
        return 0
    with StoreReader(store) as reader:
        if task:
            return _task(reader, Ref(batch, task), daemon, as_json=args.json)
        if batch:
            try:
                return _batch(reader, batch, daemon, failed=args.failed, as_json=args.json)
            except UnknownNameError as error:
                lie = [f for f in _waiting_files(args, state) if outbox.batch_name(f) == batch]
                if not lie:
                    raise
                raise UnknownNameError(f"{error}: {lie[0]} waits to be taken up") from None
        # One more than is shown, to know whether there are more.
        last = min(args.last, _ALL_BATCHES)
        rows = reader.batches(limit=last + 1 if last > 0 else -1)
        shown = rows[:last] if last > 0 else rows
        _overview(standing(daemon, reader, shown), args, state, reader)
        if len(rows) > len(shown) and not args.json:
            formatting.say("Older batches are not shown: `batchd status -n 0` shows all.")
    return 0


def _waiting_files(args: argparse.Namespace, state: Path) -> Sequence[str]:
    """Return what was dropped and is not taken up; nothing of an inbox that cannot be read."""
    with contextlib.suppress(OSError):
        return claims.waiting(Path(config.load_paths(args.config).inbox), state)
    return ()


def _dropped(args: argparse.Namespace, status: Status, state: Path) -> Iterator[str]:
    """Yield what waits in the inbox."""
    if silent_paths.among([config.load_paths(args.config).inbox]):
        yield f"The inbox does not answer: {silent_paths.FIX}."
    elif names := _waiting_files(args, state):
        files = words.counted(len(names), "file")
        if status.daemon and status.daemon.watching:
            verb = "waits" if len(names) == 1 else "wait"
            yield f"{files} {verb} to be taken up: {words.listed(names)}"
        else:
            yield f"{files} in the inbox; `batchd serve` takes what is dropped: {words.listed(names)}"


def _as_member(state: Path, args: argparse.Namespace) -> int:
    """Show what the outbox says: the store is another user's."""
    batch, task = words.split_target(args.target) if args.target else ("", "")
    if task:
        raise users.forbidden(f"what task {escape(args.target)} does", state)
    reader = MemberReader(Path(config.load_paths(args.config).outbox), state)
    status = reader.status()
    if args.json:
        formatting.print_json(to_builtins(BatchJson.of(reader.batch(batch)) if batch else status))
        return 0
    if batch:
        row = reader.batch(batch)
        print(*status_text.batches([row]), sep="\n")
        print(f"Results: {escape(row.batch.folder)}/")
        return 0
    at = moment(datetime.fromisoformat(status.at).timestamp())
    daemon, tasks = status.daemon, status.tasks
    if fresh(status):
        formatting.say(
            f"Daemon {daemon.pid} {daemon.state}: {words.counted(tasks.running, 'task')} at work, "
            f"{tasks.queued:,} queued, {tasks.parked:,} waiting, as of {at}"
        )
    else:
        formatting.say(f"No daemon runs here, as far as it shows: the last word is of {at}.")
    for each in status.troubles:
        since = moment(datetime.fromisoformat(each.since).timestamp())
        what = standstill.what(OpenTrouble(each.what, "", 0.0, ""))
        formatting.say(escape(f"Trouble since {since}: {what}."))
    for wait in status.waits:
        since = moment(datetime.fromisoformat(wait.since).timestamp())
        named = words.counted(wait.count, wait.scope) + (f" of {wait.batch}" if wait.batch else "")
        what = named if wait.scope in {"provider", "model", "task"} else wait.batch or wait.scope
        formatting.say(escape(f"Waiting since {since}: {what} ({wait.cause})."))
    last = args.last if args.last > 0 else len(status.batches)
    if rows := reader.batches(limit=last):
        print(*status_text.batches(rows), sep="\n")
    return 0


def _overview(
    status: Status, args: argparse.Namespace, state: Path, reader: StoreReader | None = None
) -> None:
    if args.json:
        # The daemon is empty where it does not answer, and null where there is none.
        said = to_builtins(status.daemon) if status.daemon else {} if status.silent else None
        batches = to_builtins([*map(BatchJson.of, status.batches)])
        parked = to_builtins(status.parked)
        formatting.print_json({"daemon": said, "parked": parked, "batches": batches})
        return
    formatting.say(_standing(status), *_dropped(args, status, state))
    if not status.runs:
        formatting.say(*_elsewhere())
    if status.daemon:
        for trouble in status.daemon.troubles:
            formatting.say(*standstill.trouble_lines(trouble))
        formatting.say(*_crowded(status.daemon))
    formatting.say(*_fetching(status), *words.parked_lines(status.parked, status.idle))
    if reader and status.batches:
        names = [row.batch.name for row in status.batches]
        prompts = reader.read(queries.first_prompts, names)
        print(*status_text.batches(status.batches, prompts), sep="\n")


def _elsewhere() -> Iterator[str]:
    """Yield where daemons run, of the directories that this user trusts."""
    for directory in trust.listing(os.environ).entries:
        with contextlib.suppress(BatchdError, OSError):
            silent_paths.refuse(directory)
            file = trust.trusted(Path(directory, trust.CONFIG), os.environ).path
            state = config.load_paths(file, {}).state
            silent_paths.refuse(state)
            if isinstance(daemon := ask(Path(state)), DaemonStatus):
                where = shlex.quote(directory)
                yield f"Daemon {daemon.pid} runs in {where}: batchd -C {where} status"


def _standing(status: Status) -> str:
    """Return what the daemon does."""
    daemon = status.daemon
    if daemon is None:
        return status.unheard
    doing = "draining" if daemon.draining else "running"
    doing += "" if daemon.watching else " for `batchd run` alone"
    tasks = daemon.tasks
    parked = f"{tasks.parked:,} waiting, " if tasks.parked else ""
    return (
        f"Daemon {daemon.pid} {doing}: {words.counted(tasks.running, 'task')} at work, "
        f"{tasks.queued:,} queued, {parked}{words.counted(len(daemon.workers), 'worker')}"
        f"{words.on_nodes(daemon.nodes)}"
    )


def _crowded(daemon: DaemonStatus) -> Iterator[str]:
    """Yield the providers that may not be called by as many agents as there are."""
    for name, known in daemon.providers.items():
        if known.waiting and 0 < known.max_concurrent <= min(known.under_way, daemon.slots - 1):
            calls = words.counted(known.waiting, "call")
            verb = "wait" if known.waiting > 1 else "waits"
            yield (
                f"{calls} {verb} for a turn at {name}: max_concurrent = {known.max_concurrent} in "
                f"[providers.{name}] is below the {daemon.slots:,} agents. If it takes more, raise that; then: kill -HUP {daemon.pid}"
            )


def _fetching(status: Status, batch: str = "") -> Iterator[str]:
    """Yield what tasks wait for, those of one batch or all; the store does not know it."""
    for each in status.daemon.fetching if status.daemon else ():
        if batch in {"", each.batch}:
            origin = f"{'a copy of ' if each.kind == 'copy' else ''}{each.source}"
            origin += each.ref and f" at {each.ref}"
            yield (
                f"Tasks of {each.batch} wait for {origin}, which is fetched for them, "
                f"since {moment(each.since)}."
            )


class TaskDetails(TaskJson, frozen=True, kw_only=True):
    """A task: ``status --json BATCH/TASK``."""

    #: What ended it, or what it waits for.
    why: str
    #: What it changed that runs code when its directory is used; null: no one looked.
    runs_code: tuple[RunsCodeV1, ...] | None
    #: Its limits of which it used 80 % or more, by key, as parts of 1.
    near_limits: Mapping[str, float]
    #: Left out within a batch.
    daemon_runs: bool | UnsetType = UNSET


class BatchDetails(BatchJson, frozen=True, kw_only=True):
    """A batch with its tasks: ``status --json BATCH``."""

    daemon_runs: bool
    #: What is parked or paused and keeps tasks of it from going on.
    waits_for: tuple[Parking, ...]
    #: The tasks themselves, in place of their number.
    tasks: tuple[TaskDetails, ...]  # type: ignore[assignment]


def _batch(
    reader: StoreReader, name: str, daemon: DaemonStatus | Unseen, *, failed: bool, as_json: bool
) -> int:
    row, tasks = reader.batch(name), reader.tasks(name)
    status = standing(daemon, reader, [row])
    parked = standstill.of_batch(status.parked, name, tasks)
    waiting = wait_reasons(reader, tasks, status)
    found = status_text.cautions(reader, name)
    steps = [*summary_text.next_steps(name, [(t.ref.task, t.status) for t in tasks])]
    if again := reader.read(lookups.retries, name):
        steps = [f"Run again as {words.listed(again)}."]
    if failed:
        tasks = [task for task in tasks if _rank(task) == 0]
    if as_json:
        shown = tuple(
            TaskDetails.of(t, why=waiting.why(t), **status_text.reported(found, t.ref.task))
            for t in tasks
        )
        more = {"daemon_runs": status.runs, "waits_for": parked, "tasks": shown}
        formatting.print_json(to_builtins(BatchDetails.of(row, **more)))
        return 0
    if status.daemon is None and status.left:
        formatting.say(_standing(status))
    print(*status_text.batches([row]), sep="\n")
    if row.batch.retry_of:
        formatting.say(f"A retry of {row.batch.retry_of}.")
    if (used := row.tally).calls:
        formatting.say(f"Prompt cache: {words.from_cache(used.cache_share, used.cache_saved)}.")
    formatting.say(*_fetching(status, name), *words.parked_lines(parked))
    formatting.say(*(f"  {problem}" for problem in row.problems))
    if tasks:
        prompts = reader.read(queries.prompts_of_batch, name, _MOST_PROMPTS)
        rows = sorted(tasks, key=_rank)
        print("", *status_text.tasks(rows, prompts, waiting, status.doing), sep="\n")
    elif failed:
        formatting.say("No task of it has failed.")
    if warnings := [*status_text.caution_lines(found)]:
        formatting.say("", *warnings)
    if row.published_at is not None and steps:
        formatting.say("", *steps)
    return 0


def _rank(task: TaskRow) -> int:
    """Return where a task stands among those of its batch: what failed comes first."""
    if not task.status.final:
        return 1
    return 2 if task.status is TaskStatus.COMPLETED else 0


def _task(reader: StoreReader, ref: Ref, daemon: DaemonStatus | Unseen, *, as_json: bool) -> int:
    row, status = reader.task(ref), standing(daemon, reader)
    waiting = wait_reasons(reader, [row], status)
    found = status_text.cautions(reader, ref.batch, ref.task)
    if as_json:
        reported = status_text.reported(found, ref.task)
        more = TaskDetails.of(row, why=waiting.why(row), daemon_runs=status.runs, **reported)
        formatting.print_json(to_builtins(more))
        return 0
    why = waiting.why(row, brief=True) or status_text.now(status.doing.get(ref))
    print(*formatting.facts(status_text.task_facts(reader, row, why)), sep="\n")
    if row.status is TaskStatus.QUEUED:
        formatting.say(*_fetching(status, ref.batch))
    if not row.status.final:
        formatting.say(*words.parked_lines(waiting.parkings(row)))
    formatting.say(*status_text.caution_lines(found))
    return 0


def schema() -> dict[str, Any]:
    """Return the JSON Schema of what ``status --json`` prints: of all, of a batch, of a task."""
    (daemon, parked, batch, *one), definitions = formats.components(
        DaemonStatus, Parking, BatchJson, BatchDetails, TaskDetails
    )
    silent, absent = {"type": "object", "maxProperties": 0}, {"type": "null"}
    every = {
        "type": "object",
        "properties": {
            "daemon": {"anyOf": [daemon, silent, absent]},
            "parked": {"type": "array", "items": parked},
            "batches": {"type": "array", "items": batch},
        },
        "required": ["daemon", "parked", "batches"],
    }
    return {"anyOf": [every, *one], "$defs": definitions}
