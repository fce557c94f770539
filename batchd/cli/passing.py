"""A daemon that is forked off for ``run``: it works on what is handed over, and ends with the last of it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from batchd import config, log
from batchd.errors import BatchdError, NotPossibleError, SpoolLockedError, UsageError
from batchd.pool import server

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


def buried(deadline: float) -> None:
    """Wait for the end of a daemon that was forked off here, if there is one, until this moment of the monotonic clock."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)


def begun(settings: config.Config, processes: int | None) -> bool:
    """Fork a daemon off and wait until it is up; return False where another one was faster. Raises why it cannot start."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    # A fork, and no program of its own: all that it needs of the environment is here, and nowhere else any more.
    if os.fork() == 0:
        os.close(reading)
        _serve(settings, processes, writing)
    os.close(writing)
    with open(reading, "rb") as said:  # noqa: PTH123 (a descriptor)
        line = said.readline()
    if not line:
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


def _serve(settings: config.Config, processes: int | None, writing: int) -> None:
    """Be a daemon that works for ``run`` alone; never return."""
    code, said = 1, False

    def say(word: dict[str, object]) -> bool:
        """Say one thing to who waits, the first time; return whether that was it."""
        nonlocal said
        if said:
            return False
        said = True
        with contextlib.suppress(OSError):  # no one waits any more
            os.write(writing, json.dumps(word).encode() + b"\n")
        os.close(writing)
        return True

    def ready() -> None:
        say({})

    try:
        # Ctrl-C is for who waits: it asks what is to become of this.
        os.setsid()
        # It may outlive the directory in which it was asked for.
        os.chdir("/")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        columns = settings.log.format == "auto" and os.isatty(2)
        _let_go(writing, said_in(settings))
        server.warm(Path(settings.paths.state, "pool"))

        from batchd.daemon import Daemon as Served  # noqa: PLC0415 (loads everything; who waits needs none of it)
        from batchd.daemon import run as run_daemon  # noqa: PLC0415 (as above)
        from batchd.report.maker import ReportMaker  # noqa: PLC0415 (as above)

        form = "console" if columns else settings.log.format
        log.configure(level(settings), form, settings.log.file)
        daemon = Served(
            _passing(settings, processes), watch=False, errands=True, finishers=[ReportMaker()]
        )
        run_daemon(daemon.run_errands(ready))
        code = 0
    except SpoolLockedError:
        server.abandon()
        say({"locked": True})
    except BatchdError as error:
        server.abandon()
        code = error.exit_code
        if not say({"error": str(error), "exit_code": code}):
            print(f"batchd: {log.escape(str(error))}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 (the outer edge of this process, as Python's own would do)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def said_in(settings: config.Config) -> Path:
    """Return the file that a daemon's lines go to: it may outlive the terminal of who waits, who shows them there."""
    return Path(settings.paths.state, "run.log")


def _let_go(writing: int, said: Path) -> None:
    """Close what belongs to who waits: input, output, errors, and what a shell had open for it, as a lock of `flock`."""
    nothing = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    lines = os.open(said, flags, 0o600)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(lines, 2)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (names)
        descriptor = int(name)
        # Python's own are never inherited.
        with contextlib.suppress(OSError):
            if descriptor > 2 and descriptor != writing and os.get_inheritable(descriptor):  # noqa: PLR2004 (stderr)
                os.close(descriptor)


def _passing(settings: config.Config, processes: int | None) -> config.Config:
    """Return the configuration of a daemon that somebody waits for: nothing is parked for long."""
    pool = settings.pool
    if processes is not None:
        pool = dataclasses.replace(pool, processes=processes)
    governor = dataclasses.replace(settings.governor, max_parked_s=0.0)
    return dataclasses.replace(settings, pool=pool, governor=governor)


def level(settings: config.Config) -> log.LogLevel:
    """Return what a daemon says to who waits for it: errors, for progress shows the rest, unless they want all."""
    return "debug" if settings.log.level == "debug" else "error"


class Lines:
    """What a daemon that was started here says: its own stderr is a file, for it may outlive this terminal."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def show(self) -> None:
        """Show what came since the last time."""
        with contextlib.suppress(OSError), self._file.open("rb") as said:
            said.seek(self._read)
            if more := said.read():
                self._read += len(more)
                sys.stderr.buffer.write(more)
                sys.stderr.flush()
