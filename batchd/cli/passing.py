"""A daemon that is forked off for ``run``: it works on what is handed over, and ends with the last of it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
from pathlib import Path

from batchd import config, log
from batchd.errors import BatchdError, NotPossibleError, UsageError


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
    from batchd.daemon import Daemon as Served  # noqa: PLC0415 (loads everything; who waits needs none of it)
    from batchd.daemon import run as run_daemon  # noqa: PLC0415 (as above)
    from batchd.errors import SpoolLockedError  # noqa: PLC0415 (as above)
    from batchd.report.maker import ReportMaker  # noqa: PLC0415 (as above)

    code = 0
    try:
        # Ctrl-C is for who waits: it asks what is to become of this.
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        log.configure(level(settings), settings.log.format, settings.log.file)
        daemon = Served(
            _passing(settings, processes), watch=False, errands=True, finishers=[ReportMaker()]
        )
        run_daemon(daemon.run_errands(lambda: _say(writing, {})))
    except SpoolLockedError:
        _say(writing, {"locked": True})
    except BatchdError as error:
        code = error.exit_code
        _say(writing, {"error": str(error), "exit_code": code})
        print(f"batchd: {log.escape(str(error))}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say(descriptor: int, word: dict[str, object]) -> None:
    """Say one thing to who waits, and nothing after it."""
    with contextlib.suppress(OSError):  # it is said already, or no one waits
        os.write(descriptor, json.dumps(word).encode() + b"\n")
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
