"""``batchd wait``: waits until batches have ended, and prints their summaries."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from batchd import words
from batchd.cli.display import formatting, progress, summary_text
from batchd.cli.submit import WaitLimit, takes
from batchd.cli.support import controlling
from batchd.errors import NoDaemonError, UsageError
from batchd.log import escape
from batchd.observe.snapshot import Unseen, ask
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("batch", nargs="+", metavar="BATCH")
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show progress until all have ended, then the summaries."""
    names: list[str] = []
    for target in args.batch:
        batch, task = formatting.split_target(target)
        if task:
            raise UsageError(
                f"{escape(target)} is a task; wait for its batch: batchd wait {escape(batch)}"
            )
        if batch not in names:
            names.append(batch)
    state = formatting.state_directory(args.config)
    if not formatting.store_path(state).exists():
        raise UsageError(f"no batch has ever been taken up on {state}; is it the right one?")
    with StoreReader(formatting.store_path(state)) as reader:
        if not _ended([reader.batch(name) for name in names]):
            _follow(state, reader, names, quiet=args.json)
        rows = [reader.batch(name) for name in names]
    return summary_text.report(rows, as_json=args.json)


def _ended(rows: Sequence[BatchRow]) -> bool:
    """Return whether the summaries of all are there."""
    return all(row.published_at is not None for row in rows)


def _follow(state: Path, reader: StoreReader, names: Sequence[str], *, quiet: bool) -> None:
    """Show progress until all have ended. Raises ``NoDaemonError`` where no one works on them."""
    left = [name for name in names if not _ended([reader.batch(name)])]
    if ask(state) is Unseen.ABSENT:
        verb = "has" if len(left) == 1 else "have"
        raise NoDaemonError(
            f"no daemon runs on {state}, and {words.listed(left)} {verb} not ended: start `batchd serve`"
        )
    patience = WaitLimit(partial(takes, state))

    def ended(rows: Sequence[BatchRow]) -> bool:
        patience.check()
        return _ended(rows)

    watch = progress.ProgressWatch(reader, lambda r: [r.batch(name) for name in left], late=True)
    try:
        progress.follow(watch, ended, quiet=quiet)
    except KeyboardInterrupt:
        shown = escape(words.listed(left))
        print(f"The daemon goes on with {shown}: batchd status.", file=sys.stderr)
        raise
