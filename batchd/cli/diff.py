"""``batchd diff``: what tasks have changed in their clones and copies, as patches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

from batchd.cli.display import formatting
from batchd.cli.support import task_patches
from batchd.errors import NotPossibleError
from batchd.formats import ResultV1
from batchd.log import escape
from batchd.observe import changes
from batchd.store.reader import StoreReader

_GREEN, _RED, _BOLD, _CYAN, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[36m", "\x1b[0m"
#: By how a line begins; the first that fits counts.
_COLOURS = {
    "+++ ": _BOLD,
    "--- ": _BOLD,
    "diff --git ": _BOLD,
    "@@": _CYAN,
    "+": _GREEN,
    "-": _RED,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "In a pipe, the output is what `git apply` takes, byte for byte."
    parser.add_argument(
        "target", nargs="?", metavar="BATCH[/TASK]", help="default: the newest batch"
    )
    parser.add_argument("--stat", action="store_true", help="a line a file, with lines + and -")


def run(args: argparse.Namespace) -> int:
    """Print patches."""
    with StoreReader(formatting.store_path(formatting.state_directory(args.config))) as reader:
        batch, task = formatting.target(reader, args.target)
        found = list(task_patches.of(reader, batch, task)) if batch else []
    if task and not found:
        raise NotPossibleError(f"{args.target} has no result yet")
    code, many = 0, len(found) > 1
    for made in found:
        for remark in changes.remarks(made.result):
            formatting.complain(f"batchd: {made.ref}: {remark}")
            code = 1
        patch = made.result.patch
        if patch is None or not patch.file or (patch.withheld and not args.stat):
            continue
        if many or args.stat:
            formatting.say(f"# {made.ref}: {changes.lines(made.result)}")
        try:
            if args.stat:
                formatting.say(*_stat(made.result))
            else:
                _show(made.patch())
        except NotPossibleError as error:
            formatting.complain(f"batchd: {error}")
            code = 1
    if not code and not any(made.result.patch for made in found):
        formatting.complain("batchd: no task there has changed a clone or a copy")
    return code


def _stat(result: ResultV1) -> Iterator[str]:
    for change in result.changes or ():
        binary = change.added is None or change.removed is None
        lines = "binary" if binary else f"+{change.added:,} -{change.removed:,}"
        yield f"  {lines:>14}  {change.path}"


def _show(data: bytes) -> None:
    """Print a patch;
    on a terminal what a task has written must not reach it as anything but text.
    """
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    sys.stdout.writelines(_lines(data.decode("utf-8", "replace").split("\n")))


def _lines(lines: Iterable[str]) -> Iterator[str]:
    wanted = formatting.colours_wanted()
    for line in lines:
        text = escape(line.expandtabs(8)) if "\t" in line else escape(line)
        colour = next((c for start, c in _COLOURS.items() if line.startswith(start)), "")
        yield f"{colour}{text}{_PLAIN}\n" if colour and wanted else f"{text}\n"
