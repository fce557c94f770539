"""The terminal while `top` has it: another screen, no cursor, keys at once;
and all as it was on any way out.

One thread reads keys, signals and news from other threads, in one place: ``wait``.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import termios
import tty
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Self

#: A key's sequence: CSI or SS3, whole.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O[@-~])")
#: One that may still become one.
_BEGUN = re.compile(r"\x1b(\[[0-9;?]*[ -/]*|O)?\Z")
_NAMES: Mapping[str, str] = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "[H": "home",
    "[F": "end",
    "[1~": "home",
    "[4~": "end",
    "[5~": "page up",
    "[6~": "page down",
    "[Z": "back tab",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "OH": "home",
    "OF": "end",
}
_LETTERS: Mapping[str, str] = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x0c": "redraw",
    "\x15": "clear",
}


class KeyDecoder:
    """Takes bytes as they come, and gives the keys that they mean;
    what it does not know it drops.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    @property
    def pending(self) -> bool:
        """Whether a sequence has begun: an Esc alone, if nothing follows."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the keys that are whole now."""
        self._rest += self._decoder.decode(data)
        return [*self._read(last=False)]

    def flush(self) -> list[str]:
        """Return what was begun as what it is: nothing followed."""
        return [*self._read(last=True)]

    def _read(self, *, last: bool) -> Iterator[str]:
        while text := self._rest:
            if found := _SEQUENCE.match(text):
                self._rest = text[found.end() :]
                if name := _NAMES.get(found[1]):
                    yield name
            elif _BEGUN.match(text) and not last:
                return
            elif text[0] == "\x1b":
                self._rest = "" if last else text[1:]
                yield "escape"
            else:
                self._rest = text[1:]
                if name := _LETTERS.get(text[0], text[0] if text[0].isprintable() else ""):
                    yield name


#: Another screen; no cursor; lines that are too long are cut, not continued.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
#: A frame between these appears at once, where the terminal knows them.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
#: The signals that end the program, and those that only change what is drawn.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_OTHERS = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
#: How long the rest of a key's sequence may take to arrive, over a slow line too (seconds).
_SEQUENCE_S = 0.1


class StopRequested(Exception):  # no error: somebody wants it
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """The controlling terminal. A context manager that takes it, and gives it back."""

    def __init__(self, keyboard: int, screen: int) -> None:
        self._keyboard = keyboard
        self._screen = screen
        self._keys = KeyDecoder()
        #: The lines as they are shown; empty: all must be drawn again.
        self._shown: list[str] = []
        self._signals: list[int] = []
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._found: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wakeup = -1

    def __enter__(self) -> Self:
        self._found = termios.tcgetattr(self._keyboard)
        self._handlers = {n: signal.signal(n, self._noted) for n in (*_ENDING, *_OTHERS)}
        self._wakeup = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # The pipe stays: a thread may still want to wake us, and must not write into another file.

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; of a terminal that does not know them, 80 and 24."""
        columns, lines = os.get_terminal_size(self._screen)
        return columns or 80, lines or 24

    def wake(self) -> None:
        """End a ``wait``; from any thread."""
        with contextlib.suppress(BlockingIOError):  # it is full, which wakes too
            os.write(self._wake, b"\0")

    def show(self, lines: list[str]) -> None:
        """Show these lines, from the top; only what has changed is sent."""
        out = []
        for place, line in enumerate(lines):
            if place >= len(self._shown) or self._shown[place] != line:
                # First: where lines do not wrap, the cursor ends on the last column, not behind it.
                out.append(f"\x1b[{place + 1};1H\x1b[K{line}\x1b[0m")
        if len(lines) < len(self._shown):
            out.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        if not self._shown:
            out.insert(0, "\x1b[2J")
        self._shown = lines
        if out:
            self._write(f"{_BEGIN}{''.join(out)}{_END}")

    def forget(self) -> None:
        """Draw all of it again the next time: somebody else wrote on the screen."""
        self._shown = []

    def wait(self, timeout_s: float) -> list[str]:
        """Return the keys that were pressed, as soon as there are some,
        or anything else has happened.

        Raises ``StopRequested`` where a signal asks for the end,
        ``OSError`` where the terminal is gone.
        """
        timeout_s = min(timeout_s, _SEQUENCE_S) if self._keys.pending else timeout_s
        ready, _, _ = select.select([self._keyboard, self._woken], [], [], max(0.0, timeout_s))
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
        self._obey()
        if self._keyboard not in ready:
            return self._keys.flush()
        data = os.read(self._keyboard, 4096)
        if not data:
            raise StopRequested(signal.SIGHUP)
        return self._keys.feed(data)

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _obey(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in _ENDING:
                raise StopRequested(number)
            if number == signal.SIGTSTP:
                self._stop()
            elif number == signal.SIGCONT:
                self._take()
            self._shown = []

    def _stop(self) -> None:
        """Give the terminal back, and let the shell have it until it says `fg`."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._noted)
        self._take()

    def _take(self) -> None:
        tty.setcbreak(self._keyboard, termios.TCSANOW)
        self._write(_ENTER)
        self._shown = []

    def _give_back(self) -> None:
        # Whatever of this cannot be done, the terminal is gone, and the rest is tried.
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._keyboard, termios.TCSANOW, self._found)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            try:
                data = data[os.write(self._screen, data) :]
            except BlockingIOError:  # somebody else's doing: the terminal is theirs too
                select.select([], [self._screen], [])
