"""``batchd search``: finds a text in what tasks were asked, said, ran and printed."""

from __future__ import annotations

import argparse
import json

import msgspec

from batchd import words
from batchd.cli.display import formatting
from batchd.console import clipped, width_of
from batchd.errors import UsageError
from batchd.log import escape, escape_json
from batchd.observe.search import Hit, finder, search
from batchd.records import Ref
from batchd.store.queries import StoreReader

_MOST = 100
#: Columns that an excerpt has at the least, and those of a turn, and of where it stands.
_LEAST, _TURN, _WHERE = 40, 7, 8


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "It looks through prompts, answers, commands, their outputs and verdicts, and shows the "
        "first match in each, some hundred of a task at most. Exit code 1: nothing is found."
    )
    parser.add_argument(
        "text", metavar="TEXT", help="in capitals or not, unless it has a capital itself"
    )
    parser.add_argument(
        "target", nargs="?", metavar="BATCH[/TASK]", help="default: all batches, the newest first"
    )
    parser.add_argument("--case", action="store_true", help="only as it is written")
    parser.add_argument(
        "-n", type=int, default=_MOST, metavar="N", help=f"at most N places (default: {_MOST})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a line a place")


def run(args: argparse.Namespace) -> int:
    """Print what is found as it is found."""
    find = finder(args.text, case=args.case)
    if args.n < 1:
        raise UsageError(f"-n is {args.n}: give a number of places, 1 or more")
    with StoreReader(formatting.store_path(formatting.state_directory(args.config))) as reader:
        batch, task = words.split_target(args.target) if args.target else ("", "")
        if task:
            reader.task(Ref(batch, task))
        rows = [reader.batch(batch)] if batch else reader.batches()
        parts = (part for row in rows for _, part in search(reader, row, find, task=task))
        shown = 0
        for hit in (hit for part in parts for hit in part):
            if shown == args.n:
                formatting.complain(f"These are the first {shown}: -n {10 * shown} shows more.")
                return 0
            print(_json(hit) if args.json else _line(hit), flush=True)
            shown += 1
    if pruned := [row.batch.name for row in rows if row.pruned]:
        what = pruned[0] if len(pruned) == 1 else words.counted(len(pruned), "batch")
        formatting.complain(
            f"Pruned: of {what} only prompts and answers in the outbox were looked through."
        )
    if not shown:
        formatting.complain("Nothing is found.")
    return 0 if shown else 1


def _json(hit: Hit) -> str:
    return escape_json(json.dumps(msgspec.to_builtins(hit), ensure_ascii=False))


def _line(hit: Hit) -> str:
    """Return a line for people; on a terminal what was found stands out."""
    turn = f"turn {hit.turn}" if hit.turn else ""
    head = escape(f"{hit.batch}/{hit.task}  {turn:<{_TURN}}  {hit.where:<{_WHERE}}  ")
    before, found, after = map(escape, (hit.before, hit.hit, hit.after))
    left = max(_LEAST, formatting.room() - width_of(head))
    found = clipped(found, left)
    spare = left - width_of(found)
    # What stands in front is cut at its beginning.
    ahead = spare - min(width_of(after), spare // 2)
    before = clipped(before[::-1], ahead)[::-1] if ahead else ""
    after = clipped(after, spare - width_of(before)) if spare > width_of(before) else ""
    return f"{head}{before}{formatting.painted(found, '1')}{after}"
