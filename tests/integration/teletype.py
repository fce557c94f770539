"""A terminal for programs that want one:
a pty at one end, at the other a screen that can be read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyte
from patience import PATIENCE_S


class _Screen(pyte.Screen):
    """As pyte has it, and which private modes are on: it knows the other screen by name alone."""

    def __init__(self, columns: int, lines: int) -> None:
        self.private: set[int] = set()
        super().__init__(columns, lines)

    def set_mode(self, *modes: int, **how: Any) -> None:
        if how.get("private"):
            self.private.update(modes)
        super().set_mode(*modes, **how)

    def reset_mode(self, *modes: int, **how: Any) -> None:
        if how.get("private"):
            self.private.difference_update(modes)
        super().reset_mode(*modes, **how)

    def erase_in_line(self, how: int = 0, private: bool = False) -> None:
        # As tmux and xterm: where lines do not wrap, the cursor stays on the last column.
        if pyte.modes.DECAWM not in self.mode:
            self.cursor.x = min(self.cursor.x, self.columns - 1)
        super().erase_in_line(how, private)


class Teletype:
    """A program on a terminal of its own, with its own session,
    as a shell over SSH gives it one.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 24,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.master, self._slave = pty.openpty()
        self.screen = _Screen(columns, lines)
        #: All that was ever sent.
        self.sent = b""
        self._stream = pyte.ByteStream(self.screen)
        self._size(columns, lines)
        self.before = termios.tcgetattr(self._slave)
        environment = {**os.environ, "TERM": "xterm-256color", **(env or {})}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)  # they would speak louder than the window
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
            # Its controlling terminal, so that Ctrl-C and the like reach it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()
        os.close(self._slave)

    # To the program

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def types(self, text: str, *texts: str) -> str:
        """Press keys, wait until what they bring about is on the screen, and return it."""
        self.type(text)
        return self.shows(*texts)

    def resize(self, columns: int, lines: int) -> None:
        """Change the window."""
        self.read()
        self.screen.resize(lines, columns)
        self._size(columns, lines)

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Close the window."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    # From the program

    def read(self, within_s: float = 0.0) -> None:
        """Take in what has been sent."""
        while self.master >= 0 and select.select([self.master], [], [], within_s)[0]:
            with contextlib.suppress(OSError):
                data = os.read(self.master, 1 << 16)
                self.sent += data
                self._stream.feed(data)
                within_s = 0.0

    @property
    def text(self) -> str:
        """The screen as a person reads it now."""
        self.read()
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, condition: Callable[[str], object], within_s: float = PATIENCE_S) -> str:
        """Wait until the screen is so, and return it."""
        deadline = time.monotonic() + within_s
        while not condition(self.text):
            assert time.monotonic() < deadline, f"never on the screen; it is\n{self.text}"
            self.read(0.05)
        return self.text

    def shows(self, *texts: str, within_s: float = PATIENCE_S) -> str:
        """Wait until all of these are on the screen, and return it."""
        return self.until(lambda screen: all(text in screen for text in texts), within_s)

    def ends(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the program's end, and return its code."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; the screen is\n{self.text}"
            self.read(0.02)
        self.read(0.05)
        return self.process.returncode

    def clean(self) -> bool:
        """Return whether the terminal is as it was:
        its settings, its first screen, its cursor, its wrapping.
        """
        self.read()
        modes = self.screen.private
        same = termios.tcgetattr(self._slave) == self.before
        return same and 1049 not in modes and {25, 7} <= _set(self.sent)

    def _size(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, size)


def _set(sent: bytes) -> set[int]:
    """Return which of the modes that terminals begin with are on after all that was sent."""
    modes = {25, 7}
    for part in sent.split(b"\x1b[?")[1:]:
        number = part[: len(part) - len(part.lstrip(b"0123456789"))]
        if number:
            (modes.add if part[len(number) :][:1] == b"h" else modes.discard)(int(number))
    return modes
