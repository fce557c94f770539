"""``batchd logs``: what tasks did, step by step, from the journal."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from batchd.cli import common
from batchd.events import Event
from batchd.log import escape, escape_json
from batchd.observe.words import moment
from batchd.records import Ref
from batchd.store.reader import Reader
from batchd.store.rows import BatchRow, TaskRow

#: Seconds between two looks with ``-f``.
_POLL_S = 0.3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("target", nargs="?", metavar="BATCH[/TASK]", help="else the newest batch")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="wait for more, until all of it has ended"
    )
    parser.add_argument("--json", action="store_true", help="one event a line, whole")


def run(args: argparse.Namespace) -> int:
    """Print the journal in the order of time."""
    state = common.state_directory(args.config)
    with Reader(common.store_path(state)) as reader:
        batch, task = _target(reader, args.target)
        if not batch:
            return 0
        seen: dict[Ref, int] = {}
        told = False
        while True:
            rows = [reader.task(Ref(batch, task))] if task else reader.tasks(batch)
            for ref, event in _fresh(reader, rows, seen):
                _print(ref, event, as_json=args.json)
                told = True
            if not args.follow or all(r.status.final for r in rows):
                break
            time.sleep(_POLL_S)
        if not told:
            print(escape(_silence(reader.batch(batch))), file=sys.stderr)
    return 0


def _silence(row: BatchRow) -> str:
    """Return why there is nothing to print."""
    name = row.batch.name
    if row.problems:
        return f"{name} was rejected when it came: `batchd status {name}` says why"
    if row.pruned:
        return (
            f"{name}: its journal was pruned, by `batchd prune` or [store] retention_days, some time after it "
            f"finished ({moment(row.finished_at)}); transcripts, where nobody took them, lie in {row.batch.folder}"
        )
    return f"{name}: nothing of it has begun"


def _target(reader: Reader, target: str | None) -> tuple[str, str]:
    if target:
        return common.split_target(target)
    newest = reader.batches(limit=1)
    return (newest[0].batch.name if newest else "", "")


def _fresh(
    reader: Reader, rows: list[TaskRow], seen: dict[Ref, int]
) -> Iterator[tuple[Ref, Event]]:
    """Yield the events that came since the last look, by their time."""
    found: list[tuple[float, Ref, Event]] = []
    for row in rows:
        if seen.get(row.ref) == -1:
            continue
        start = seen.get(row.ref, 0)
        events = reader.events(row.ref, start)
        found += [(e.at, row.ref, e) for e in events]
        # The row was read before the events: what was final then has no more to come.
        seen[row.ref] = -1 if row.status.final else start + len(events)
    found.sort(key=lambda item: item[0])
    return ((ref, event) for _, ref, event in found)


def _print(ref: Ref, event: Event, *, as_json: bool) -> None:
    if as_json:
        print(escape_json(json.dumps(_fields(ref, event), ensure_ascii=False)), flush=True)
        return
    from batchd.cli import steps  # noqa: PLC0415 (not with --json)

    action, text = steps.line(event)
    if action:
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        print(f"{at} {escape(str(ref))} {action:<16} {text}".rstrip(), flush=True)


def _fields(ref: Ref, event: Event) -> dict[str, Any]:
    """Return an event as the transcript has it, and whose it is."""
    from batchd import results  # noqa: PLC0415 (only with --json)

    return {"batch": ref.batch, "task": ref.task, **json.loads(results.transcript([event]))}
