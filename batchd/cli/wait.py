"""``batchd wait``: waits until batches have ended, and prints their summaries."""

from __future__ import annotations

import argparse
import sys

from batchd import words
from batchd.cli import orders
from batchd.cli.display import formatting, progress, summary_text
from batchd.errors import NoDaemonError, UsageError
from batchd.log import escape
from batchd.observe.status import Unseen, ask
from batchd.store.queries import StoreReader


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("batch", nargs="+", metavar="BATCH")
    orders.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show progress until all have ended, then the summaries."""
    names: list[str] = []
    for target in args.batch:
        batch, task = words.split_target(target)
        if task:
            raise UsageError(
                f"{escape(target)} is a task; wait for its batch: batchd wait {escape(batch)}"
            )
        if batch not in names:
            names.append(batch)
    state = formatting.state_directory(args.config)
    if not formatting.store_path(state).exists():
        raise UsageError(f"nothing has run on {state} yet; is it the right spool?")
    with StoreReader(formatting.store_path(state)) as reader:
        left = [name for name in names if reader.batch(name).published_at is None]
        if left and ask(state) is Unseen.ABSENT:
            verb = "has" if len(left) == 1 else "have"
            raise NoDaemonError(
                f"no daemon runs on {state}, and {words.listed(left)} {verb} not ended: start `batchd serve`"
            )
        watch = progress.ProgressWatch(
            reader, lambda r: [r.batch(name) for name in left], late=True
        )
        try:
            if left:
                progress.follow(watch, lambda: ask(state) is not Unseen.ABSENT, quiet=args.json)
        except KeyboardInterrupt:
            shown = escape(words.listed(left))
            print(f"The daemon goes on with {shown}: batchd status.", file=sys.stderr)
            raise
        rows = [reader.batch(name) for name in names]
    return summary_text.report(rows, as_json=args.json)
