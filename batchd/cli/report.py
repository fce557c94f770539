"""``batchd report``: the report of a batch written again,
or of several batches or days, or a table for spreadsheets.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from operator import itemgetter
from pathlib import Path

from batchd import config
from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.errors import NotPossibleError
from batchd.log import escape
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("batch", nargs="*", metavar="BATCH", help="default: the newest batch")
    days = "batches at work on this day or {}, in UTC: 2026-11-24, today, yesterday"
    parser.add_argument("--since", type=formatting.day, metavar="DAY", help=days.format("later"))
    parser.add_argument("--until", type=formatting.day, metavar="DAY", help=days.format("earlier"))
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=(
            "the file to write, - for standard output (default: report.html in the batch's "
            "folder; for several, or for one that has not ended, in the working directory)"
        ),
    )
    parser.add_argument(
        "--csv", action="store_true", help="print a table for spreadsheets, a line a task"
    )


def run(args: argparse.Namespace) -> int:
    """Make a report, and say where it lies."""
    from batchd.web import gathering  # `--help` need not load SQLite

    with StoreReader(formatting.store_path(formatting.state_directory(args.config))) as reader:
        batches = gathering.chosen(reader, tuple(args.batch), args.since, args.until)
        if args.csv:
            return _csv(reader, batches, args.output)
        return _page(reader, batches, args)


def _page(reader: StoreReader, batches: list[BatchRow], args: argparse.Namespace) -> int:
    from batchd.web import gathering, report, report_process
    from batchd.words import counted

    target = _target(batches, args.output)
    for batch in batches:
        formatting.complain(gathering.missing(batch))
    beside = target.parent if target else Path.cwd()
    style = report_process.style(config.load(args.config))
    data = report.make(reader, batches, beside.absolute(), style)
    if target is None:
        sys.stdout.buffer.write(data)
        return 0
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # a device or a pipe: nothing is put in its place
    else:
        from batchd.spool import outbox

        outbox.publish(target.absolute(), data, replace=True)
    about = counted(sum(row.tasks for row in batches), "task")
    about += f" of {counted(len(batches), 'batch') if len(batches) > 1 else batches[0].batch.name}"
    print(escape(f"{target}: {about}, {len(data) / 1e6:.1f} MB"))
    return 0


def _target(batches: list[BatchRow], given: str | None) -> Path | None:
    """Return where the page goes; None: standard output.

    Raises ``NotPossibleError`` where its batch's outbox, or the folder that is named, is not there.
    """
    if given == "-":
        return None
    if given:
        if not (folder := Path(given).absolute().parent).is_dir():
            raise NotPossibleError(f"{folder} is not there: make it, or name another file")
        return Path(given)
    (first, *others) = batches
    if others or first.published_at is None:
        return Path("report.html")
    # Its folder may have been pruned, or collected: it is made again then.
    if not Path(first.batch.outbox).is_dir():
        raise NotPossibleError(
            f"{first.batch.outbox}, where {first.batch.name} was, is gone: name a file with -o FILE"
        )
    return Path(first.batch.folder, "report.html")


def _csv(reader: StoreReader, batches: list[BatchRow], given: str | None) -> int:
    from batchd.web import gathering

    gathered = [gathering.Gathered(reader, batch) for batch in batches]
    records = (gathering.record(task) for source in gathered for task in source)
    with contextlib.ExitStack() as stack:
        if given not in {None, "-"}:
            file = Path(str(given)).open("w", encoding="utf-8", newline="")  # noqa: SIM115 (the stack closes it)
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(file)))
        tables.table(records, [Column(n, itemgetter(n)) for n in gathering.COLUMNS], "csv")
    return 0
