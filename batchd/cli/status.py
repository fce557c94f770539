"""``batchd status``: batches, the tasks of one, or one task;
from the store, with or without a daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import structs, to_builtins

from batchd import config, silent_paths, users, words
from batchd.cli import orders
from batchd.cli.display import formatting, status_text, summary_text
from batchd.cli.support.member_reader import MemberReader, fresh
from batchd.config import trust
from batchd.control import DaemonStatus, OpenTrouble, fields
from batchd.errors import BatchdError, UsageError
from batchd.log import escape
from batchd.observe import standstill
from batchd.observe.standstill import WaitReasons
from batchd.observe.status import Unseen, ask
from batchd.records import Parking, Ref, TaskStatus
from batchd.spool.claims import ignorable
from batchd.store import lookups, queries
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow
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
    taken = isinstance(daemon, DaemonStatus) and daemon.watching
    quiet = bool(batch) or args.json or taken
    dropped = [] if quiet else [*_dropped(config.load_paths(args.config).inbox)]
    store = formatting.store_path(state)
    if not batch and not store.exists():
        # Nothing has been dropped yet: that is no error.
        return _overview(daemon, (), [], as_json=args.json, dropped=dropped)
    with StoreReader(store) as reader:
        if task:
            return _task(reader, Ref(batch, task), daemon, as_json=args.json)
        if batch:
            return _batch(reader, batch, daemon, failed=args.failed, as_json=args.json)
        # One more than is shown, to know whether there are more.
        last = min(args.last, _ALL_BATCHES)
        rows = reader.batches(limit=last + 1 if last > 0 else -1)
        shown = rows[:last] if last > 0 else rows
        parked = reader.parked()
        idle = reader.read(queries.idle, parked)
        prompts = (
            {}
            if args.json
            else reader.read(queries.first_prompts, [row.batch.name for row in shown])
        )
        code = _overview(
            daemon,
            parked,
            shown,
            as_json=args.json,
            dropped=dropped,
            idle=idle,
            prompts=prompts,
        )
        if len(rows) > len(shown) and not args.json:
            formatting.say("Older batches are not shown: `batchd status -n 0` shows all.")
        return code


def _dropped(inbox: str) -> Iterator[str]:
    """Yield how much lies in the inbox of no daemon."""
    if silent_paths.among([inbox]):
        yield f"The inbox does not answer: {silent_paths.FIX}."
        return
    with contextlib.suppress(OSError):
        if lying := [name for name in os.listdir(inbox) if not ignorable(name)]:
            files = words.counted(len(lying), "file")
            yield f"{files} in the inbox; `batchd serve` takes what is dropped."


def _as_member(state: Path, args: argparse.Namespace) -> int:
    """Show what the outbox says: the store is another user's."""
    batch, task = words.split_target(args.target) if args.target else ("", "")
    if task:
        raise users.forbidden(f"what task {escape(args.target)} does", state)
    reader = MemberReader(Path(config.load_paths(args.config).outbox), state)
    status = reader.status()
    if args.json:
        formatting.print_json(_fields(reader.batch(batch)) if batch else to_builtins(status))
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
    daemon: DaemonStatus | Unseen,
    parked: Sequence[Parking],
    rows: list[BatchRow],
    *,
    as_json: bool,
    dropped: Sequence[str] = (),
    idle: Collection[str] = (),
    prompts: Mapping[str, str] | None = None,
) -> int:
    """``dropped``: lines on the inbox of no daemon; ``idle``: what is parked,
    and no task waits for it; ``prompts``: of batches' first tasks.
    """
    if as_json:
        batches = [_fields(r) for r in rows]
        waits = [dataclasses.asdict(p) for p in parked]
        # It is empty where the daemon does not answer, and null where there is none.
        standing = fields(daemon) if isinstance(daemon, DaemonStatus) else None
        standing = {} if daemon is Unseen.SILENT else standing
        formatting.print_json({"daemon": standing, "parked": waits, "batches": batches})
        return 0
    formatting.say(_standing(daemon, waiting=any(r.finished < r.tasks for r in rows)))
    formatting.say(*dropped)
    if daemon is Unseen.ABSENT:
        formatting.say(*_elsewhere())
    if isinstance(daemon, DaemonStatus):
        for trouble in daemon.troubles:
            formatting.say(*standstill.trouble_lines(trouble))
        formatting.say(*_crowded(daemon))
    formatting.say(*_fetching(daemon), *words.parked_lines(parked, idle))
    if rows:
        print(*status_text.batches(rows, prompts), sep="\n")
    return 0


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


def _standing(daemon: DaemonStatus | Unseen, *, waiting: bool) -> str:
    """Return what the daemon does; ``waiting``: whether there is something for it to do."""
    if daemon is Unseen.ABSENT:
        rest = "; what has not ended goes on then, where it was" if waiting else ""
        return f"No daemon runs here; `batchd serve` starts one{rest}."
    if daemon is Unseen.SILENT:
        return "The daemon does not answer: what follows is what the store says."
    doing = "draining" if daemon.draining else "running"
    doing += "" if daemon.watching else " for `batchd run` alone"
    tasks = daemon.tasks
    parked = f"{tasks.parked:,} waiting, " if tasks.parked else ""
    nodes = len({worker.node for worker in daemon.workers if worker.node})
    return (
        f"Daemon {daemon.pid} {doing}: {words.counted(tasks.running, 'task')} at work, "
        f"{tasks.queued:,} queued, {parked}{words.counted(len(daemon.workers), 'worker')}"
        f"{words.on_nodes(nodes)}"
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


def _fetching(daemon: DaemonStatus | Unseen, batch: str = "") -> list[str]:
    """Return what tasks wait for, those of one batch or all; the store does not know it."""
    found = []
    for each in daemon.fetching if isinstance(daemon, DaemonStatus) else ():
        if batch in {"", each.batch}:
            origin = f"{'a copy of ' if each.kind == 'copy' else ''}{each.source}"
            origin += each.ref and f" at {each.ref}"
            found.append(
                f"Tasks of {each.batch} wait for {origin}, which is fetched for them, "
                f"since {moment(each.since)}."
            )
    return found


def _batch(
    reader: StoreReader,
    name: str,
    daemon: DaemonStatus | Unseen,
    *,
    failed: bool,
    as_json: bool,
) -> int:
    tasks = reader.tasks(name)
    parked = standstill.of_batch(reader.parked(), name, tasks)
    row = reader.batch(name)
    waiting = _waiting(reader, tasks, parked, daemon)
    found = status_text.cautions(reader, name)
    steps = [*summary_text.next_steps(name, [(t.ref.task, t.status) for t in tasks])]
    if failed:
        tasks = [task for task in tasks if _rank(task) == 0]
    if as_json:
        waits = [dataclasses.asdict(p) for p in parked]
        rows = [
            {
                **_fields(t),
                "why": waiting.why(t),
                "runs_code": status_text.cautions_field(found, t.ref.task),
            }
            for t in tasks
        ]
        runs = daemon is not Unseen.ABSENT
        formatting.print_json(
            {**_fields(row), "daemon_runs": runs, "waits_for": waits, "tasks": rows}
        )
        return 0
    if isinstance(daemon, Unseen) and row.finished < row.tasks:
        formatting.say(_standing(daemon, waiting=True))
    print(*status_text.batches([row]), sep="\n")
    if row.batch.retry_of:
        formatting.say(f"A retry of {row.batch.retry_of}.")
    if (used := row.tally).calls:
        formatting.say(f"Prompt cache: {words.from_cache(used.cache_share, used.cache_saved)}.")
    formatting.say(*_fetching(daemon, name), *words.parked_lines(parked))
    formatting.say(*(f"  {problem}" for problem in row.problems))
    if tasks:
        print(
            "",
            *status_text.tasks(
                sorted(tasks, key=_rank),
                reader.read(queries.prompts_of_batch, name, _MOST_PROMPTS),
                waiting,
            ),
            sep="\n",
        )
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


def _waiting(
    reader: StoreReader,
    tasks: Sequence[TaskRow],
    parked: Sequence[Parking],
    daemon: DaemonStatus | Unseen,
) -> WaitReasons:
    """Return what says why tasks of one batch wait;
    ``tasks``: those, and all that they come after.
    """
    left = {task.ref for task in tasks if not task.status.final}
    begun = reader.begun() if left else ()
    batches = {ref.batch: reader.read(lookups.open_before, ref.batch) for ref in [*left][:1]}
    runs = daemon is not Unseen.ABSENT
    return WaitReasons(parked, begun, left, earlier=batches, daemon=runs)


def _task(reader: StoreReader, ref: Ref, daemon: DaemonStatus | Unseen, *, as_json: bool) -> int:
    row = reader.task(ref)
    others = [reader.task(Ref(ref.batch, name)) for name in row.after]
    waiting = _waiting(reader, [row, *others], reader.parked(), daemon)
    why = waiting.why(row)
    found = status_text.cautions(reader, ref.batch, ref.task)
    if as_json:
        runs_code = status_text.cautions_field(found, ref.task)
        more = {"why": why, "daemon_runs": daemon is not Unseen.ABSENT, "runs_code": runs_code}
        formatting.print_json({**_fields(row), **more})
        return 0
    print(*formatting.facts(status_text.task_facts(reader, row, waiting.in_short(row))), sep="\n")
    if row.status is TaskStatus.QUEUED:
        formatting.say(*_fetching(daemon, ref.batch))
    if not row.status.final:
        formatting.say(*words.parked_lines(waiting.parkings(row)))
    formatting.say(*status_text.caution_lines(found))
    return 0


#: What JSON says of the tally of a batch or a task.
_TALLY = (
    *("calls", "input_tokens", "cached_input_tokens", "cache_write_tokens"),
    *("cache_write_long_tokens", "cache_reported_tokens", "cache_saved_usd", "output_tokens"),
    *("unsettled_calls", "unsettled_usd", "reasoning_tokens", "estimated", "cost_usd", "known_usd"),
    *("cache_share", "cache_saved"),
)


def _fields(row: BatchRow | TaskRow) -> dict[str, Any]:
    """Return a row as JSON has it."""
    fields = {name: getattr(row.tally, name) for name in _TALLY} | dataclasses.asdict(row)
    del fields["tally"]
    if isinstance(row, BatchRow):
        del fields["batch"]
        fields |= {**structs.asdict(row.batch), "status": row.status}
    else:
        del fields["ref"]
        fields |= {"batch": row.ref.batch, "task": row.ref.task}
    return fields
