"""``batchd retry``: runs batches or tasks again, as a new run with a name of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from batchd import words
from batchd.cli.display import formatting
from batchd.cli.support import controlling
from batchd.control import Retried, Retry
from batchd.errors import BatchdError, UsageError
from batchd.observe.snapshot import Unseen, ask
from batchd.records import Ref, TaskStatus
from batchd.spool.ulid import ulid
from batchd.store.reader import StoreReader


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    controlling.targets(parser)
    parser.add_argument(
        "--failed",
        action="store_true",
        help="only tasks that did not complete, and tasks that come after them",
    )
    parser.add_argument(
        "--yes", action="store_true", help="do not ask about tasks that have completed"
    )
    parser.add_argument(
        "--model",
        metavar="PROVIDER/MODEL",
        help="use this model instead; tasks that wait for a model that is gone are cancelled and run again too",
    )


def run(args: argparse.Namespace) -> int:
    """Start a new run of each batch, and print its name."""
    given = controlling.checked(args.target)
    if args.model == "":
        # As of a variable that is not set: with the tasks' own models it would be another order.
        raise UsageError("--model is empty: give PROVIDER/MODEL, as in openai/gpt-6-luna")
    if not (args.failed or args.yes or args.json or _wanted(args.config, given)):
        formatting.complain("nothing runs again; --failed runs only what did not complete")
        return 2
    # The mark makes sure that an order whose answer is lost, and which is given again, is one.
    answer = controlling.ask(
        args.config,
        Retry(target=given, failed=args.failed, model=args.model or "", claim=ulid()),
    )
    code = controlling.show(answer, lines(answer), json=args.json)
    if answer.runs and not args.json:
        state = formatting.state_directory(args.config)
        if ask(state) is Unseen.ABSENT:
            formatting.complain("No daemon runs; they wait until `batchd serve` starts.")
    return code


def _wanted(file: Path | None, targets: Sequence[str]) -> bool:
    """Return whether what has completed is to run, and be paid, again:
    on a terminal that is asked.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        with StoreReader(formatting.store_path(formatting.state_directory(file))) as reader:
            count = sum(_completed(reader, *formatting.split_target(target)) for target in targets)
    except BatchdError:
        return True  # the order itself says what is wrong
    if not count:
        return True
    done = f"{words.counted(count, 'task')} completed before"
    again = "it" if count == 1 else "them"
    question = f"{done}. Running {again} again costs money again. Run all? [y/N] "
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _completed(reader: StoreReader, batch: str, task: str) -> int:
    """Return how many tasks of a target have completed."""
    if not task:
        return reader.batch(batch).completed
    return int(reader.task(Ref(batch, task)).status is TaskStatus.COMPLETED)


def lines(answer: Retried) -> list[str]:
    """Return what the answer says."""
    return [
        f"{run.batch}: {words.counted(run.tasks, 'task')} of {run.retry_of} queued again"
        for run in answer.runs
    ]
