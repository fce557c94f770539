"""How `logs` prints events: as JSON, a line each, or, of one task, as a conversation."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from batchd.cli import common, glyphs, reading
from batchd.cli.reading import Line, Tone
from batchd.events import Event
from batchd.fitting import clipped
from batchd.log import escape, escape_json
from batchd.observe.conversation import passages
from batchd.observe.snapshot import Agent, agent_at
from batchd.observe.words import duration
from batchd.records import Ref, Status
from batchd.store.reader import Reader
from batchd.store.rows import TaskRow

#: The escape sequence of each tone.
_CODES: Mapping[Tone, str] = {
    Tone.STRONG: "1",
    Tone.QUIET: "2",
    Tone.GOOD: "32",
    Tone.BAD: "31",
    Tone.NOTE: "33",
}
#: The daemon is asked so often what it does for a task (seconds).
_ASK_S = 1.0


class Printer:
    """Prints events as they come. A context manager that leaves the terminal as it should be."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take away what is shown for the time of waiting."""

    def show(self, ref: Ref, event: Event) -> None:
        """Print an event."""
        raise NotImplementedError

    def wait(self, rows: Sequence[TaskRow]) -> None:
        """Show for what it is waited now, where there is a place for it."""


class Json(Printer):
    """For programs: an event as the transcript has it, and whose it is."""

    def show(self, ref: Ref, event: Event) -> None:
        """Print a line."""
        from batchd import results  # noqa: PLC0415 (only with --json)

        fields = json.loads(results.transcript([event]))
        record = {"batch": ref.batch, "task": ref.task, **fields}
        print(escape_json(json.dumps(record, ensure_ascii=False)), flush=True)


class Lines(Printer):
    """A line a step."""

    def show(self, ref: Ref, event: Event) -> None:
        """Print a line, where there is something to say."""
        from batchd.cli import steps  # noqa: PLC0415 (not with --json)

        action, text = steps.line(event)
        if action:
            at = time.strftime("%H:%M:%S", time.localtime(event.at))
            common.say(f"{at} {ref} {action:<16} {text}".rstrip())
            sys.stdout.flush()


class Conversation(Printer):
    """What a person would read; on a terminal in colours, with a last line that says what is done right now."""

    def __init__(self, reader: Reader, state: Path, *, full: bool) -> None:
        self._reader = reader
        self._state = state
        self._full = full
        self._prompt: str | None = None
        self._terminal = sys.stdout.isatty()
        self._colours = self._terminal and common.colours_wanted()
        self._ascii = glyphs.ascii_only(sys.stdout.encoding)
        #: What the last line says, and when the daemon was asked for it.
        self._doing: Agent | None = None
        self._asked = 0.0
        self._shown = False

    def __exit__(self, *_: object) -> None:
        self._clear()

    def show(self, ref: Ref, event: Event) -> None:
        """Print what an event adds to the conversation."""
        if self._prompt is None:
            self._prompt = self._reader.spec(ref).first_prompt
        width = common.terminal_width() if self._terminal else 0
        self._clear()
        self._asked = 0.0  # whatever was done, something else is done now
        for passage in passages(event, self._prompt):
            for line in reading.lines(passage, width, full=self._full):
                print(self._painted(line))
        sys.stdout.flush()

    def wait(self, rows: Sequence[TaskRow]) -> None:
        """Show what the task does, or what it waits for."""
        if not self._terminal:
            return
        [row] = rows
        if time.monotonic() - self._asked >= _ASK_S:
            self._doing = agent_at(self._state, row) if row.status is Status.RUNNING else None
            self._asked = time.monotonic()
        line = clipped(escape(_now(row, self._doing)), common.terminal_width() - 1)
        self._clear()
        self._shown = True  # before it is: Ctrl-C may come in between
        print(self._painted(Line(line, Tone.NOTE)), end="", flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", flush=True)
            self._shown = False

    def _painted(self, line: Line) -> str:
        text, tail = line.text, line.tail
        if self._ascii:
            text, tail = glyphs.plain(text), glyphs.plain(tail)
        if not self._colours:
            return f"{text}{tail}".rstrip()
        code = _CODES.get(line.tone)
        text = f"\x1b[{code}m{text}\x1b[0m" if code and text else text
        return f"{text}\x1b[2m{tail}\x1b[0m" if tail else text


def _now(row: TaskRow, doing: Agent | None) -> str:
    if doing is not None:
        what = ": ".join(filter(None, (doing.step, doing.detail)))
        return f"▸ {what}, for {duration(max(0.0, time.time() - doing.since))}"
    return f"‖ {row.status}{f': {row.message}' if row.message else ''}"
