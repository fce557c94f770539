"""``batchd prune``: finished batches give room back:
their journals, and their folders if asked to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchd import words
from batchd.cli.display import formatting
from batchd.cli.support import controlling
from batchd.control import Prune
from batchd.errors import UsageError
from batchd.log import escape
from batchd.spool.removal import PublishedFolder
from batchd.store import lookups
from batchd.store.reader import StoreReader
from batchd.store.rows import PrunableBatch
from batchd.words import moment

_DAY_S = 86400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "It prunes finished batches only; their statuses, tokens, money and names stay known. "
        "Without --yes it changes nothing, and shows what it would do."
    )
    parser.add_argument(
        "--older-than",
        type=float,
        default=0.0,
        metavar="DAYS",
        help="only batches that finished at least this many days ago",
    )
    parser.add_argument(
        "--outbox", action="store_true", help="remove their folders in the outbox too"
    )
    parser.add_argument("--yes", action="store_true", help="do it")
    controlling.as_json(parser)


def run(args: argparse.Namespace) -> int:
    """Show what would go, or have it go."""
    if not 0 <= args.older_than < 1e6:  # no store is that old
        raise UsageError("--older-than needs a number of days, 0 or more")
    if not args.yes:
        return _show(args, formatting.store_path(formatting.state_directory(args.config)))
    answer = controlling.ask(
        args.config, Prune(older_than_days=args.older_than, outbox=args.outbox)
    )
    line = f"{words.counted(answer.pruned, 'batch')} pruned: {_size(answer.bytes)}"
    if args.outbox:
        folders = words.counted(answer.folders, "folder")
        line += f"; {folders} removed: {_size(answer.folder_bytes)}"
    if answer.mirrors:
        line += f"; {words.counted(answer.mirrors, 'mirror')} removed: {_size(answer.mirror_bytes)}"
    controlling.show(answer, [line], json=args.json)
    for problem in answer.problems:
        print(f"batchd: {escape(problem)}", file=sys.stderr)
    return 1 if answer.problems else 0


def _show(args: argparse.Namespace, store: Path) -> int:
    """Print the batches of which something would go."""
    fields: list[dict[str, Any]] = []
    rows: Sequence[PrunableBatch] = ()
    if store.exists():
        with StoreReader(store) as reader:
            rows = reader.read(lookups.prunable, time.time() - args.older_than * _DAY_S)
    for row in rows:
        size = PublishedFolder(row.batch.outbox, row.batch.name).size() if args.outbox else None
        if row.stored or size is not None:
            folder = {"folder": row.batch.folder, "folder_bytes": size or 0}
            fields.append(
                {
                    "batch": row.batch.name,
                    "tasks": row.tasks,
                    "published_at": row.published_at,
                    "bytes": row.bytes,
                    **(folder if args.outbox else {}),
                }
            )
    if args.json:
        formatting.print_json({"dry_run": True, "batches": fields})
        return 0
    if not fields:
        print("Nothing to prune.")
        return 0
    cells = [
        (
            f["batch"],
            f"{f['tasks']:,}",
            moment(f["published_at"]),
            _size(f["bytes"]),
            *([_size(f["folder_bytes"])] if args.outbox else []),
        )
        for f in fields
    ]
    heads = ("BATCH", "TASKS", "FINISHED", "JOURNAL", *(["FOLDER"] if args.outbox else []))
    right = ("TASKS", "JOURNAL", "FOLDER")
    print(*formatting.table(heads, cells, right=right, flexible="BATCH"), sep="\n")
    print("Nothing is done yet; add --yes to do it.")
    return 0


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"  # 0.1 MB
