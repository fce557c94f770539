"""``batchd logs``: what tasks did, from the journal:
one as a conversation, a batch a line a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from batchd import views, words
from batchd.cli.display import conversation_lines, formatting
from batchd.cli.display.conversation_lines import ScreenLine, Tone
from batchd.console import clipped, width_of, wrapped
from batchd.control.status import RunningTask
from batchd.events import Event
from batchd.log import escape, escape_json
from batchd.observe.status import Unseen, ask, doing as doing_now
from batchd.records import Ref, TaskStatus
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow
from batchd.words import duration

#: The escape sequence of each tone.
_CODES: Mapping[Tone, str] = {
    Tone.STRONG: "1",
    Tone.QUIET: "2",
    Tone.GOOD: "32",
    Tone.BAD: "31",
    Tone.NOTE: "33",
}
#: Columns of the longest of the log's words for events.
_ACTION = max(len(view.action or "") for view in views.ALL)
#: The daemon is asked so often what it does for a task (seconds).
_ASK_S = 1.0


class Printer:
    """What prints events as they come; this one is for programs: an event as the transcript has it,
    with its batch and task.
    """

    def show(self, ref: Ref, event: Event) -> None:
        """Print an event."""
        from batchd import results  # only with --json

        fields = json.loads(results.transcript([event]))
        record = {"batch": ref.batch, "task": ref.task, **fields}
        print(escape_json(json.dumps(record, ensure_ascii=False)), flush=True)

    def wait(self, row: TaskRow | None) -> None:
        """Show for the time of waiting what the one task that is followed does, where there is a
        place for it; None: several are, or it is over.
        """


class LinePrinter(Printer):
    """A line a step, in columns: when, which task,
    the log's word for it, and what there is to say.
    """

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        """``tasks``: those that have begun; names that are longer make room for themselves."""
        self._widest = max(map(width_of, tasks), default=0)

    def show(self, ref: Ref, event: Event) -> None:
        """Print a line, where there is something to say;
        on a terminal its rest hangs below its beginning.
        """
        view = views.of(event)
        if view.action is None:
            return
        name = escape(ref.task)
        self._widest = max(self._widest, width_of(name))
        gap = " " * (self._widest - width_of(name))
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        head = f"{at}  {name}{gap}  {view.action:<{_ACTION}}  "
        # Where long names leave too little room, further lines begin further to the left.
        margin = " " * min(width_of(head), formatting.terminal_width() * 3 // 5)
        first, *more = wrapped(escape(view.text(event)), max(20, formatting.room() - len(head)))
        print(f"{head}{first}".rstrip())
        rest = " ".join(more)
        for piece in wrapped(rest, max(20, formatting.room() - len(margin))) if rest else ():
            print(f"{margin}{piece}")
        sys.stdout.flush()


class ConversationPrinter(Printer):
    """What a person would read; on a terminal in colours,
    with a last line that says what is done right now.
    """

    def __init__(self, reader: StoreReader, state: Path, *, full: bool) -> None:
        self._reader = reader
        self._state = state
        self._full = full
        self._prompt: str | None = None
        self._terminal = sys.stdout.isatty()
        self._ascii = conversation_lines.ascii_only(sys.stdout.encoding)
        #: What the last line says, and when the daemon was asked for it.
        self._doing: RunningTask | None = None
        self._asked = 0.0
        self._shown = False

    def show(self, ref: Ref, event: Event) -> None:
        """Print what an event adds to the conversation."""
        if self._prompt is None:
            self._prompt = self._reader.prompt(ref)
        width = formatting.terminal_width() if self._terminal else 0
        self._clear()
        self._asked = 0.0  # whatever was done, something else is done now
        for passage in views.passages(event, self._prompt):
            for line in conversation_lines.lines(passage, width, full=self._full):
                print(self._painted(line))
        sys.stdout.flush()

    def wait(self, row: TaskRow | None) -> None:
        """Show what the task does, or what it waits for."""
        self._clear()
        if not self._terminal or row is None:
            return
        if time.monotonic() - self._asked >= _ASK_S:
            self._doing = doing_now(self._state, row) if row.status is TaskStatus.RUNNING else None
            self._asked = time.monotonic()
        line = clipped(escape(_now(row, self._doing)), formatting.terminal_width() - 1)
        self._shown = True  # before it is: Ctrl-C may come in between
        print(self._painted(ScreenLine(line, Tone.NOTE)), end="", flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", flush=True)
            self._shown = False

    def _painted(self, line: ScreenLine) -> str:
        text, tail = line.text, line.tail
        if self._ascii:
            text, tail = conversation_lines.plain(text), conversation_lines.plain(tail)
        text = formatting.painted(text, _CODES.get(line.tone))
        return f"{text}{formatting.painted(tail, '2')}".rstrip()


def _now(row: TaskRow, doing: RunningTask | None) -> str:
    if doing is not None:
        what = ": ".join(filter(None, (doing.step, doing.said)))
        return f"▸ {what}, for {duration(max(0.0, time.time() - doing.since))}"
    return f"‖ {words.status(row.status)}{f': {row.message}' if row.message else ''}"


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
        if args.json:
            printer = Printer()
        elif args.lines or not task:
            printer = LinePrinter(reader.read(lookups.lengths, batch, task))
        else:
            printer = ConversationPrinter(reader, state, full=args.full)
        try:
            shown = _follow(reader, batch, task, printer, on=args.follow)
        finally:
            printer.wait(None)
        if not shown:
            print(escape(_silence(reader.batch(batch))), file=sys.stderr)
    return 0


def _follow(reader: StoreReader, batch: str, task: str, printer: Printer, *, on: bool) -> bool:
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
        printer.wait(reader.task(Ref(batch, task)) if task else None)
        time.sleep(max(_POLL_S, _SHARE * took_s))


def _ended(reader: StoreReader, batch: str, task: str) -> bool:
    """Return whether there is nothing more to come; before what there is was read."""
    return (
        reader.task(Ref(batch, task)).status.final
        if task
        else not reader.read(lookups.unfinished, batch)
    )


def _silence(row: BatchRow) -> str:
    """Return why there is nothing to print."""
    name, folder = row.batch.name, row.batch.folder
    if row.pruned:
        return f"{name}: its journal was pruned; transcripts that are still there lie in {folder}"
    why = "was rejected when it came" if row.problems else "has not started"
    return f"{name} {why}: see `batchd status {name}`"


def _fresh(
    reader: StoreReader, batch: str, task: str, seen: dict[str, int]
) -> Iterator[tuple[Ref, Event]]:
    """Yield the events that came since the last look, by their time."""
    found: list[tuple[float, Ref, Event]] = []
    for name, length in reader.read(lookups.lengths, batch, task).items():
        start = seen.get(name, 0)
        if length > start:
            ref = Ref(batch, name)
            if events := reader.read(lookups.events, ref, start):  # none, where they were pruned
                found += [(e.at, ref, e) for e in events]
                seen[name] = start + len(events)
    found.sort(key=lambda item: item[0])
    return ((ref, event) for _, ref, event in found)
