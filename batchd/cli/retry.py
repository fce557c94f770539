"""``batchd retry``: runs batches or tasks again, as a new run with a name of its own."""

from __future__ import annotations

import argparse

from batchd.cli import common, controlling
from batchd.control import Retried, Retry
from batchd.errors import UsageError
from batchd.observe import words
from batchd.observe.snapshot import Unseen, ask
from batchd.spool.ulid import ulid


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    controlling.targets(parser)
    parser.add_argument(
        "--failed", action="store_true", help="only what did not complete, and what comes after it"
    )
    parser.add_argument(
        "--model",
        metavar="PROVIDER/MODEL",
        help="with this model in place of its own; tasks that wait for a model that is gone run again too, and are cancelled",
    )


def run(args: argparse.Namespace) -> int:
    """Have a new run started for each batch, and say what it is called."""
    given = controlling.checked(args.target)
    if args.model == "":
        # As of a variable that is not set: with the tasks' own models it would be another order.
        raise UsageError("--model is empty: it wants PROVIDER/MODEL, as in openai/gpt-6-luna")
    # The mark makes sure that an order whose answer is lost, and which is given again, is one.
    answer = controlling.ask(
        args.config,
        Retry(target=given, failed=args.failed, model=args.model or "", claim=ulid()),
    )
    code = controlling.tell(answer, lines(answer), json=args.json)
    if answer.runs and not args.json:
        state = common.state_directory(args.config)
        if ask(state) is Unseen.ABSENT:
            common.complain("No daemon runs; they wait until `batchd serve` starts.")
    return code


def lines(answer: Retried) -> list[str]:
    """Return what the answer says."""
    return [
        f"{run.batch}: {words.counted(run.tasks, 'task')} of {run.retry_of} queued again"
        for run in answer.runs
    ]
