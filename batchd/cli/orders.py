"""The commands that give orders: to the daemon, or, where none runs, with its lock and its code,
here and now. What each takes and says stands with its class in ``control/orders.py``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchd import config, control, log, words
from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.control import Order, Pause, Prune, Retry
from batchd.control.orders import ORDERS
from batchd.control.requests import A
from batchd.errors import (
    BatchdError,
    ConfigError,
    DaemonEndedError,
    NoAnswerError,
    NoDaemonError,
    SpoolLockedError,
    StoreError,
    UsageError,
)
from batchd.log import escape
from batchd.records import Ref, TargetCounts
from batchd.version import __version__

#: How long a daemon may take to start, or to stop, before that is reported to the user who waits.
_CHANGING_S = 15.0
_AGAIN_S = 0.1
_DAY_S = 86400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the one that the parser is for."""
    order = ORDERS[parser.prog.rpartition(" ")[2]]
    parser.epilog = order.epilog
    order.arguments(parser)
    as_json(parser)


def as_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Give the order, and print what its answer says."""
    order = ORDERS[args.command].given(args)
    if isinstance(order, Prune) and not args.yes:
        return _show_prunable(order, formatting.state_directory(args.config), as_json=args.json)
    if isinstance(order, Retry) and not (
        args.yes or _wanted(args.config, order, ask=not args.json)
    ):
        less = "" if order.failed else ", --failed only what did not complete"
        formatting.complain(f"nothing runs again; --yes runs it{less}")
        return 2
    answer = ask(args.config, order)
    if args.json:
        formatting.print_json(control.fields(answer))
    else:
        formatting.say(*order.say(answer))
    if isinstance(order, Prune):
        for problem in answer.problems:
            print(f"batchd: {escape(problem)}", file=sys.stderr)
        return 1 if answer.problems else 0
    if isinstance(order, Retry) and answer.runs and not args.json:
        from batchd.observe.status import Unseen, ask as look  # no other order asks the store

        if look(formatting.state_directory(args.config)) is Unseen.ABSENT:
            formatting.complain("No daemon runs; they wait until `batchd serve` starts.")
    return 0


def _wanted(file: Path | None, order: Retry, *, ask: bool) -> bool:
    """Return whether what has completed is to run, and be paid, again: on a terminal that may be
    asked; a script that did not say so is refused.
    """
    from batchd.store import lookups
    from batchd.store.queries import StoreReader

    try:
        with StoreReader(formatting.store_path(formatting.state_directory(file))) as reader:
            targets = map(words.split_target, order.target)
            counts = [
                (reader.task(Ref(batch, task)) if task else reader.batch(batch)).counts
                for batch, task in targets
            ]
            asked, paid = order.question(TargetCounts(*map(sum, zip(*counts, strict=True))))
            batches = dict.fromkeys(words.split_target(each)[0] for each in order.target)
            again = [name for batch in batches for name in reader.read(lookups.retries, batch)]
            if again and order.failed:
                paid = f"{words.listed(again)} ran it again before; what that completed costs money again."
    except BatchdError:
        return True  # the order itself says what is wrong
    if paid and not (ask and sys.stdin.isatty() and sys.stdout.isatty()):
        formatting.complain(paid)
        return False
    try:
        return not paid or input(f"{paid} {asked} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _show_prunable(order: Prune, state: Path, *, as_json: bool) -> int:
    """Print the batches of which something would go."""
    from batchd.spool.outbox import PublishedFolder
    from batchd.store import lookups
    from batchd.store.queries import StoreReader

    fields: list[dict[str, Any]] = []
    if (store := formatting.store_path(state)).exists():
        with StoreReader(store) as reader:
            rows = reader.read(lookups.prunable, time.time() - order.older_than_days * _DAY_S)
        for row in rows:
            folder = PublishedFolder(row.batch.outbox, row.batch.name)
            size = folder.size() if order.outbox else None
            if row.stored or size is not None:
                of_folder = {"folder": row.batch.folder, "folder_bytes": size or 0}
                fields.append(
                    {
                        "batch": row.batch.name,
                        "tasks": row.tasks,
                        "published_at": row.published_at,
                        "bytes": row.bytes,
                        **(of_folder if order.outbox else {}),
                    }
                )
    if as_json:
        formatting.print_json({"dry_run": True, "batches": fields})
        return 0
    if not fields:
        print("Nothing to prune.")
        return 0
    columns: list[Column[dict[str, Any]]] = [
        Column("BATCH", lambda f: f["batch"], wide="name"),
        Column("TASKS", lambda f: f"{f['tasks']:,}", right=True),
        Column("FINISHED", lambda f: words.moment(f["published_at"])),
        Column("JOURNAL", lambda f: words.megabytes(f["bytes"]), right=True),
    ]
    if order.outbox:
        columns.append(Column("FOLDER", lambda f: words.megabytes(f["folder_bytes"]), right=True))
    tables.table(fields, columns)
    print("Nothing is done yet; add --yes to do it.")
    return 0


def ask(file: Path | None, order: Order[A]) -> A:
    """Give an order, and return the answer: what it says is durable.

    ``file``: the configuration that was named, if any. Raises ``UsageError`` and the like where the
    order is refused, ``SpoolLockedError`` where somebody has the spool and does not answer.
    """
    state = formatting.state_directory(file)
    deadline = time.monotonic() + _CHANGING_S
    while True:
        try:
            return control.ask(
                state,
                order,
                timeout_s=control.PATIENCE_S,
                heed=heed,
                waiting=lambda: formatting.complain(
                    "batchd: the order is not carried out yet: `batchd status` says what the daemon "
                    "waits for; Ctrl-C gives it up"
                ),
            )
        except NoAnswerError:
            raise
        except KeyboardInterrupt:
            formatting.complain(
                "you gave the order up: what was not durable by then is not carried out; see `batchd status`"
            )
            raise
        except NoDaemonError as error:
            if order.adds and isinstance(error, DaemonEndedError):
                # Given again, it might count twice.
                fix = "see in `batchd status --json BATCH` whether it is carried out"
                raise NoAnswerError(f"{error} before it answered: {fix}") from None
            if order.needs_daemon:
                raise NoDaemonError(f"{error}: {order.needs_daemon}") from None
        try:
            return _here(file, state, order)
        except SpoolLockedError as error:
            # A daemon that starts or stops just now, or another command like this one.
            if time.monotonic() > deadline:
                raise SpoolLockedError(f"{error}, which does not answer; try again") from None
        time.sleep(_AGAIN_S)


def heed(version: str) -> None:
    """Say where the daemon that answered is of another version:
    what it refuses, it may not know yet.
    """
    if version != __version__:
        from batchd.observe import standstill

        formatting.complain(standstill.differs(version))


def _here(file: Path | None, state: Path, order: Order[A]) -> A:
    try:
        settings = config.load(file)  # all of it is needed where no daemon has one
    except ConfigError:
        raise NoDaemonError(
            f"no daemon runs on {state}; without one, the configuration must be fixed first"
        ) from None
    from batchd.daemon import Daemon  # loads everything; a running daemon has done so
    from batchd.observe import standstill
    from batchd.spool import safety

    safety.refuse_seen(settings)
    ahead = isinstance(order, Pause) and settings.file
    if not ahead and not formatting.store_path(state).exists():
        # Nothing is made in a folder where batchd has never been: it may be the wrong one.
        raise UsageError(f"nothing has run on {state} yet; is it the right spool?")
    import asyncio

    from batchd.web.report_process import ReportMaker

    log.configure("critical")  # no line at all: who gave the order has its answer
    daemon = Daemon(settings, watch=False, work=False, finishers=[ReportMaker()])
    answer = asyncio.run(daemon.command(order))
    for trouble in daemon.left:
        print(*standstill.trouble_lines(trouble), sep="\n", file=sys.stderr)
    return answer


def refusals(state: Path) -> Iterator[str]:
    """Yield why, each with what to do. No daemon may be running there."""
    import sqlite3  # orders need none of this

    from batchd.spool import home
    from batchd.store import witness
    from batchd.store.database_file import reading

    if not state.is_dir():
        return
    if problem := home.away_from_home(state):
        yield problem
    path = formatting.store_path(state)
    try:
        witness.check_there(path)
        if path.exists() and path.stat().st_size:
            witness.check_held(path, reading(path))
    except StoreError as error:
        yield str(error)
    except (sqlite3.Error, OSError):
        return  # the command that opens it says what is wrong with it
