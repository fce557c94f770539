"""A daemon for one ``run``: forked off, it loads, and begins to work when it is wanted;
and whether somebody has the spool.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from batchd import config
from batchd.cli.runs import run_daemon
from batchd.errors import NotPossibleError, UsageError

_LOOK_S = 0.02


def locked(state: Path) -> bool:
    """Return whether somebody holds the spool's lock at this moment."""
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Standby:
    """A daemon that loads, and waits to be let go;
    a context manager that dismisses one that was not.

    Until then it takes nothing up, and makes nothing in a spool that is not there yet.
    """

    def __init__(self, settings: config.Config, processes: int | None) -> None:
        going, self._go = os.pipe()
        self._said, saying = os.pipe()
        #: What it says in its log, for who waits for it.
        self.lines = DaemonOutput(run_daemon.said_in(settings))
        sys.stdout.flush()
        # Ctrl-C is for who waits:
        # it asks what is to become of the other one, which leaves its group first.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # A fork, and no program of its own:
        # all that it needs of the environment is here, and nowhere else any more.
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            os.close(self._go)
            os.close(self._said)
            run_daemon.serve(settings, processes, going, saying, unblocked=before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(going)
        os.close(saying)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End it, if it was not let go: it has the terminal of who asked, or their pipe."""
        if self._go < 0:
            return
        os.close(self._go)
        os.close(self._said)
        self._go = -1
        # It is waited for here alone: the number is still its own.
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)

    def begin(self) -> bool:
        """Let it go and wait until it is up; return False where another one was faster.

        Raises why it cannot start.
        """
        self.lines.skip()
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"!")
        os.close(self._go)
        self._go = -1
        with open(self._said, "rb") as said:
            line = said.readline()
        if not line:
            self.lines.show()
            raise NotPossibleError(
                "the daemon for this run ended before it was up; see its error above"
            )
        word = json.loads(line)
        if word.get("locked"):
            return False
        if "error" in word:
            kind = UsageError if word["exit_code"] == UsageError.exit_code else NotPossibleError
            raise kind(word["error"])
        return True

    def bury(self, deadline: float) -> None:
        """Wait for the end of one that was let go, until this moment of the monotonic clock."""
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def ahead(settings: config.Config, processes: int | None) -> Iterator[Standby | None]:
    """Give a daemon that loads while a ``run`` looks through its files;
    None where somebody has the spool.

    Both load at the same time: a first call comes some 0.2 s sooner.
    """
    try:
        wanted = not locked(Path(settings.paths.state))
    except FileNotFoundError:
        wanted = True
    except OSError:
        wanted = False  # what is wrong there is said by who comes to it
    if not wanted:
        yield None
        return
    with Standby(settings, processes) as standby:
        yield standby


class DaemonOutput:
    """What a daemon that was started here says:
    its own stderr is a file, for it may outlive this terminal.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def skip(self) -> None:
        """Leave out what daemons before have said."""
        self._read = self._size()

    def show(self) -> None:
        """Show what came since the last time."""
        self._read = min(self._read, self._size())  # another one may have emptied it
        with contextlib.suppress(OSError), self._file.open("rb") as said:
            said.seek(self._read)
            if more := said.read():
                self._read += len(more)
                sys.stderr.buffer.write(more)
                sys.stderr.flush()

    def _size(self) -> int:
        try:
            return self._file.stat().st_size
        except OSError:
            return 0
