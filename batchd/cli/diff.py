"""``batchd diff``: what tasks have changed in their clones and copies, as patches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.cli.display import formatting
from batchd.errors import NotPossibleError
from batchd.formats import ResultV1
from batchd.log import escape
from batchd.observe import changes
from batchd.records import Ref
from batchd.spool import outbox
from batchd.store.queries import StoreReader

#: Bold, cyan, green and red, by how a line begins; the first that fits counts.
_COLOURS = {"+++ ": "1", "--- ": "1", "diff --git ": "1", "@@": "36", "+": "32", "-": "31"}


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
        found = list(patches(reader, batch, task)) if batch else []
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
                for change in made.result.changes or ():
                    binary = change.added is None or change.removed is None
                    lines = "binary" if binary else f"+{change.added:,} -{change.removed:,}"
                    formatting.say(f"  {lines:>14}  {change.path}")
            else:
                _show(made.patch())
        except NotPossibleError as error:
            formatting.complain(f"batchd: {error}")
            code = 1
    if not code and not any(made.result.patch for made in found):
        formatting.complain(f"batchd: no task of {args.target or 'the newest batch'} left a patch")
    return code


def _show(data: bytes) -> None:
    """Print a patch;
    on a terminal what a task has written must not reach it as anything but text.
    """
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    for line in data.decode("utf-8", "replace").split("\n"):
        text = escape(line.expandtabs(8)) if "\t" in line else escape(line)
        colour = next((c for start, c in _COLOURS.items() if line.startswith(start)), "")
        print(formatting.painted(text, colour))


@dataclass(frozen=True, slots=True)
class TaskPatch:
    """What a task has made, by its result."""

    ref: Ref
    folder: Path
    result: ResultV1

    @property
    def file(self) -> Path:
        """Where the patch lies."""
        return self.folder / outbox.patch_name(self.ref.task)

    def patch(self) -> bytes:
        """Return the patch. Raises ``NotPossibleError`` where it is not what the result says."""
        patch = self.result.patch
        data = outbox.whole_patch(self.folder, self.ref.task, patch.sha256) if patch else None
        if data is None:
            raise NotPossibleError(
                f"{self.file} is gone, or differs from what the result of {self.ref} says"
            )
        return data


def patches(reader: StoreReader, batch: str, task: str = "") -> Iterator[TaskPatch]:
    """Yield the tasks of a batch, or the one that is named, that have a result.

    Raises ``UnknownNameError``.
    """
    row = reader.batch(batch)
    names = [reader.task(Ref(batch, task)).ref.task] if task else None
    folder = Path(row.batch.folder)
    for name in names or [each.ref.task for each in reader.tasks(batch)]:
        value = outbox.result(folder, name)
        if value is not None:
            yield TaskPatch(Ref(batch, name), folder, _result(value, folder / f"{name}.json"))


def _result(value: object, path: Path) -> ResultV1:
    try:
        return decoders.convert(value, ResultV1)
    except msgspec.ValidationError as error:
        raise NotPossibleError(f"{path} is not a result of batchd: {error}") from None
