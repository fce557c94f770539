"""What a screen shows beside how things stand: prompts, last commands, what ended lately.

Each is read once as long as it is the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchd.errors import StoreError
from batchd.records import Ref
from batchd.store.reader import StoreReader
from batchd.store.rows import TaskRow
from batchd.views.work_views import command

#: Tasks are looked at one by one, of those at work the first: no screen has more lines.
_MAX_TASKS = 100
#: What ended longer ago is not lately (seconds).
_LATELY_S = 6 * 3600.0
#: Of the time, what looking for what ended may take at most:
#: batches may have a hundred thousand tasks.
_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Glimpsed:
    """What was seen."""

    #: Of tasks at work, and of those that ended lately.
    prompts: Mapping[Ref, str] = field(default_factory=dict)
    #: What each task at work ran last, as people read it.
    commands: Mapping[Ref, str] = field(default_factory=dict)
    #: The newest first.
    ended: Sequence[TaskRow] = ()


class Glimpses:
    """Looks again and again, and remembers."""

    def __init__(self, ended: int) -> None:
        """``ended``: so many tasks that ended lately are shown."""
        self._most_ended = ended
        self._prompts: dict[Ref, str] = {}
        #: Each with what it was read at: as long as no more was done, it is the same.
        self._commands: dict[Ref, tuple[tuple[int, str, int], str]] = {}
        self._ended: Sequence[TaskRow] = ()
        self._due = 0.0

    def look(self, reader: StoreReader, at_work: Sequence[TaskRow]) -> Glimpsed:
        """Return what there is beside these tasks, which are at work. Raises ``StoreError``."""
        self._look_at_ended(reader)
        rows = at_work[:_MAX_TASKS]
        self._prompts = {
            row.ref: self._prompts.get(row.ref) or _prompt(reader, row.ref)
            for row in (*rows, *self._ended)
        }
        self._commands = {row.ref: self._command(reader, row) for row in rows}
        commands = {ref: said for ref, (_, said) in self._commands.items()}
        return Glimpsed(self._prompts, commands, self._ended)

    def _look_at_ended(self, reader: StoreReader) -> None:
        begun = time.monotonic()
        if begun >= self._due:
            self._ended = reader.ended(time.time() - _LATELY_S, self._most_ended)
            self._due = begun + (time.monotonic() - begun) / _SHARE

    def _command(self, reader: StoreReader, row: TaskRow) -> tuple[tuple[int, str, int], str]:
        mark = (row.calls, row.step, row.round)
        known = self._commands.get(row.ref)
        if known and known[0] == mark:
            return known
        call = reader.command(row.ref)
        return mark, " ".join(command(call).split()) if call else ""


def _prompt(reader: StoreReader, ref: Ref) -> str:
    try:
        return " ".join(reader.spec(ref).first_prompt.split())
    except StoreError:  # it was pruned
        return ""
