"""How commands give orders: to the daemon, or, where none runs,
with its lock and its code, here and now.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchd import config, control, log
from batchd.cli.display import formatting
from batchd.control import ControlRequest, Pause
from batchd.control.requests import A
from batchd.errors import (
    ConfigError,
    NoAnswerError,
    NoDaemonError,
    SpoolLockedError,
    StoreError,
    UsageError,
)
from batchd.observe import standstill

#: What the daemon gets for an order: ten thousand tasks take their time.
_PATIENCE_S = 600.0
#: How long a daemon may take to start, or to stop, before that is reported to the user who waits.
_CHANGING_S = 15.0
_AGAIN_S = 0.1


def ask(file: Path | None, order: ControlRequest[A]) -> A:
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
                timeout_s=_PATIENCE_S,
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
        except NoDaemonError:
            pass
        try:
            return _here(file, state, order)
        except SpoolLockedError as error:
            # A daemon that starts or stops just now, or another command like this one.
            if time.monotonic() > deadline:
                raise SpoolLockedError(f"{error}, which does not answer; try again") from None
        time.sleep(_AGAIN_S)


def running(file: Path | None, order: ControlRequest[A], why: str) -> A:
    """Give a running daemon an order that makes sense there alone;
    ``why`` says what to do otherwise.

    Raises ``NoDaemonError``.
    """
    try:
        return control.ask(formatting.state_directory(file), order, heed=heed)
    except NoAnswerError:
        raise
    except NoDaemonError as error:
        raise NoDaemonError(f"{error}: {why}") from None


def heed(version: str) -> None:
    """Say where the daemon that answered is of another version:
    what it refuses, it may not know yet.
    """
    formatting.complain(standstill.differs(version))


def _here(file: Path | None, state: Path, order: ControlRequest[A]) -> A:
    try:
        settings = config.load(file)  # all of it is needed where no daemon has one
    except ConfigError:
        raise NoDaemonError(
            f"no daemon runs on {state}; without one, the configuration must be fixed first"
        ) from None
    from batchd import visible
    from batchd.daemon import Daemon  # loads everything; a running daemon has done so

    visible.refuse(settings)
    if not isinstance(order, Pause) and not formatting.store_path(state).exists():
        # Nothing is made in a folder where batchd has never been: it may be the wrong one.
        raise UsageError(f"no batch has ever been taken up on {state}; is it the right one?")
    import asyncio

    from batchd.report.report_process import ReportMaker

    known = settings.log
    # The order's lines go to the daemon's file; the user who gave it has the answer.
    log.configure(known.level, known.format, known.file, silent=True)
    daemon = Daemon(settings, watch=False, work=False, finishers=[ReportMaker()])
    answer = asyncio.run(daemon.command(order))
    for trouble in daemon.left:
        print(*standstill.trouble_lines(trouble), sep="\n", file=sys.stderr)
    return answer


def as_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def show(answer: object, lines: Sequence[str], *, json: bool) -> int:
    """Print an answer, and return the exit code for done."""
    if json:
        formatting.print_json(control.fields(answer))
    formatting.say(*(() if json else lines))
    return 0


def refusals(state: Path) -> Iterator[str]:
    """Yield why, each with what to do. No daemon may be running there."""
    import sqlite3  # orders need none of this

    from batchd.spool import home
    from batchd.store import witness
    from batchd.store.database_file import reading

    if not state.is_dir():
        return
    if problem := home.away(state):
        yield problem
    path = formatting.store_path(state)
    try:
        witness.check_there(path)
        if path.exists() and path.stat().st_size:
            witness.check(path, reading(path))
    except StoreError as error:
        yield str(error)
    except (sqlite3.Error, OSError):
        return  # the command that opens it says what is wrong with it
