"""``batchd logs``: what tasks did, from the journal:
one as a conversation, a batch a line a step.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from batchd.cli.display import event_printers, formatting
from batchd.events import Event
from batchd.log import escape
from batchd.observe.snapshot import Unseen, ask
from batchd.records import Ref
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow
from batchd.words import moment

#: Seconds between two looks with ``-f``.
_POLL_S = 0.3
#: … and more, by what a look takes: of a large batch it may be long.
_SHARE = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "A task is shown as a conversation, with the outputs of its commands folded."
    parser.add_argument(
        "target", nargs="?", metavar="BATCH[/TASK]", help="default: the newest batch"
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow it until everything has ended"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--full", action="store_true", help="show a task's conversation with nothing folded"
    )
    how.add_argument("--lines", action="store_true", help="show a line a step, for a task too")
    how.add_argument("--json", action="store_true", help="print whole events, one a line")


def run(args: argparse.Namespace) -> int:
    """Print the journal in the order of time."""
    state = formatting.state_directory(args.config)
    with StoreReader(formatting.store_path(state)) as reader:
        batch, task = formatting.target(reader, args.target)
        if not batch:
            return 0
        if args.follow and ask(state) is Unseen.ABSENT and not _ended(reader, batch, task):
            formatting.complain(
                "No daemon runs; more comes once `batchd serve` starts. Ctrl-C ends this."
            )
        with _printer(args, reader, state, batch, task) as printer:
            shown = _follow(reader, batch, task, printer, on=args.follow)
        if not shown:
            print(escape(_silence(reader.batch(batch))), file=sys.stderr)
    return 0


def _follow(
    reader: StoreReader, batch: str, task: str, printer: event_printers.Printer, *, on: bool
) -> bool:
    """Print what there is, and what comes for as long as that is wanted;
    return whether there was anything.
    """
    seen: dict[str, int] = {}
    known, took_s = -1, 0.0
    while True:
        if (changes := reader.changes()) != known:
            known, begun = changes, time.monotonic()
            ended = _ended(reader, batch, task)
            for ref, event in _fresh(reader, batch, task, seen):
                printer.show(ref, event)
            took_s = time.monotonic() - begun
            if not on or ended:
                return bool(seen)
        printer.wait([reader.task(Ref(batch, task))] if task else [])
        time.sleep(max(_POLL_S, _SHARE * took_s))


def _ended(reader: StoreReader, batch: str, task: str) -> bool:
    """Return whether there is nothing more to come; before what there is was read."""
    return reader.task(Ref(batch, task)).status.final if task else not reader.unfinished(batch)


def _printer(
    args: argparse.Namespace, reader: StoreReader, state: Path, batch: str, task: str
) -> event_printers.Printer:
    if args.json:
        return event_printers.JsonPrinter()
    if args.lines or not task:
        return event_printers.LinePrinter(reader.lengths(batch, task))
    return event_printers.ConversationPrinter(reader, state, full=args.full)


def _silence(row: BatchRow) -> str:
    """Return why there is nothing to print."""
    name = row.batch.name
    if row.problems:
        return f"{name} was rejected when it came: `batchd status {name}` says why"
    if row.pruned:
        return (
            f"{name}: its journal was pruned, by `batchd prune` or [store] retention_days, some time after it "
            f"finished ({moment(row.finished_at)}); transcripts that are still there lie in {row.batch.folder}"
        )
    return f"{name}: nothing of it has started"


def _fresh(
    reader: StoreReader, batch: str, task: str, seen: dict[str, int]
) -> Iterator[tuple[Ref, Event]]:
    """Yield the events that came since the last look, by their time."""
    found: list[tuple[float, Ref, Event]] = []
    for name, length in reader.lengths(batch, task).items():
        start = seen.get(name, 0)
        if length > start:
            ref = Ref(batch, name)
            if events := reader.events(ref, start):  # none, where they were pruned
                found += [(e.at, ref, e) for e in events]
                seen[name] = start + len(events)
    found.sort(key=lambda item: item[0])
    return ((ref, event) for _, ref, event in found)
