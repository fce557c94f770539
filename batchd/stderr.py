"""Standard error as a place for lines, which does not wait for a reader that stands still."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable

#: Characters written at once: as bytes at most the 4 KB that a pipe has room for where it has any.
_CHUNK = 1024
#: The same for a terminal, whose room grows by 256 bytes; a line end takes two.
_TERMINAL_CHUNK = 60
#: How long a reader may stand still before lines are left out.
_PATIENCE_S = 1.0


class Stderr:
    """The writer of lines to ``sys.stderr``.

    A pager that shows its first page, a terminal at Ctrl-S: the kernel holds a process that writes
    to them until they read on, and a daemon would stand still with them. Here that is once, for a
    second; then lines are left out until they read again, and counted.
    """

    def __init__(self, notice: Callable[[int], str]) -> None:
        """``notice`` returns the line that says how many were left out."""
        self._notice = notice
        self._left_out = 0
        #: Whether the last line was written in part.
        self._torn = False

    def write(self, line: str) -> None:
        """Write a line, its end included, or leave it out."""
        try:
            self._write(line)
        except (OSError, ValueError):
            # Our stderr has no reader any more. That must not stop the work.
            return

    def _write(self, line: str) -> None:
        before = self._left_out
        if before:
            if not _taken(0.0):
                self._left_out += 1
                return
            line = ("\n" if self._torn else "") + self._notice(before) + line
        size = _TERMINAL_CHUNK if sys.stderr.isatty() else _CHUNK
        for start in range(0, len(line), size):
            if not _taken(_PATIENCE_S):
                self._left_out = before + 1
                self._torn = start > 0
                return
            sys.stderr.write(line[start : start + size])
            sys.stderr.flush()
        self._left_out = 0


def _taken(patience_s: float) -> bool:
    """Return whether what is written now is taken at once, or will be within ``patience_s``."""
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError):
        return True  # in memory: there is no reader
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(patience_s * 1000))
