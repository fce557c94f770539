"""A terminal for programs that want one: tmux, whose screen can be read."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from patience import PATIENCE_S, until

#: What tmux starts: it waits until all is recorded, runs the program, and leaves its exit code.
_SCRIPT = 'trap : HUP INT QUIT; read -r _ <"$0/go"; "$@"; echo $? >"$0/new"; mv "$0/new" "$0/code"; read -r _'
#: What is on before a program has the terminal: cursor and wrapping, no other screen, no mouse.
_MODES = "#{alternate_on} #{cursor_flag} #{wrap_flag} #{mouse_any_flag}"
_CLEAN = "0 1 1 0"


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
        if not shutil.which("tmux"):
            pytest.skip("there is no tmux")
        # A short path: the socket is in it.
        self._folder = Path(tempfile.mkdtemp(prefix="batchd-", dir="/tmp"))
        os.mkfifo(self._folder / "go")
        environment = {**os.environ, **(env or {})}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)  # they would speak louder than the window
        term = (
            environment.get("TERM", "xterm-256color") if env and "TERM" in env else "xterm-256color"
        )
        words = ["env", "-u", "TMUX", "-u", "TMUX_PANE", f"TERM={term}", "bash", "-c", _SCRIPT]
        size = ["-x", str(columns), "-y", str(lines)]
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", *size, *words, self._folder, *command,
            ";", "pipe-pane", f"cat >{shlex.quote(str(self._folder / 'sent'))}",
            env=environment,
        )  # fmt: skip
        shell, name = self._tmux("display", "-p", "#{pane_pid} #{pane_tty}").split()
        self._children = Path(f"/proc/{shell}/task/{shell}/children")
        self._terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
        # It is open once the shell reads it: all that tmux sets is set.
        with (self._folder / "go").open("w") as go:
            self._before = termios.tcgetattr(self._terminal)
            go.write("\n")

    def _tmux(self, *words: str | Path, env: Mapping[str, str] | None = None) -> str:
        command = ["tmux", "-u", "-S", self._folder / "tmux", *words]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._terminal)
        if not (self._folder / "code").exists():
            self.signal(signal.SIGKILL)
            until((self._folder / "code").exists)
        subprocess.run(["tmux", "-S", self._folder / "tmux", "kill-server"], capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)  # tmux takes its socket away

    # To the program

    def type(self, text: str) -> None:
        """Press keys."""
        self._tmux("send-keys", "-H", *(f"{byte:02x}" for byte in text.encode()))

    def types(self, text: str, *texts: str) -> str:
        """Press keys, wait until what they bring about is on the screen, and return it."""
        self.type(text)
        return self.shows(*texts)

    def resize(self, columns: int, lines: int) -> None:
        """Change the window."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        for process in self._children.read_text().split():
            os.kill(int(process), number)

    def hang_up(self) -> None:
        """Close the window."""
        self._tmux("kill-pane")

    # From the program

    @property
    def sent(self) -> bytes:
        """All that was ever sent."""
        return (self._folder / "sent").read_bytes()

    @property
    def text(self) -> str:
        """The screen as a person reads it now."""
        lines = self._tmux("capture-pane", "-p").split("\n")[:-1]
        return "\n".join(line.rstrip() for line in lines)

    @property
    def looks(self) -> list[str]:
        """Its lines with the sequences that give them their looks."""
        return self._tmux("capture-pane", "-p", "-e", "-N").split("\n")[:-1]

    def until(self, condition: Callable[[str], object], within_s: float = PATIENCE_S) -> str:
        """Wait until the screen is so, and return it."""
        deadline = time.monotonic() + within_s
        while not condition(screen := self.text):
            assert time.monotonic() < deadline, f"never on the screen; it is\n{screen}"
            time.sleep(0.05)
        return screen

    def shows(self, *texts: str, within_s: float = PATIENCE_S) -> str:
        """Wait until all of these are on the screen, and return it."""
        return self.until(lambda screen: all(text in screen for text in texts), within_s)

    def ends(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the program's end, and return its code."""
        code = self._folder / "code"
        until(code.exists, lambda: f"it does not end; the screen is\n{self.text}", within_s)
        return int(code.read_text())

    def clean(self, within_s: float = PATIENCE_S) -> bool:
        """Return whether the terminal comes to be as it was:
        its settings, its first screen, its cursor, its wrapping, its mouse.
        """
        until(lambda: not self.taken, lambda: f"it is not as it was:\n{self.text}", within_s)
        return True

    @property
    def taken(self) -> bool:
        """Whether it is not as it was now."""
        same: Any = termios.tcgetattr(self._terminal) == self._before
        return not same or self._tmux("display", "-p", _MODES).strip() != _CLEAN
