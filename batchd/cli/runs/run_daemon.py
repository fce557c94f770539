"""The process of a daemon that was forked off for ``run``: it loads,
waits to be let go, and works on what is handed over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

from batchd import config, log
from batchd.cli.display import formatting
from batchd.cli.support import barred
from batchd.errors import BatchdError, NotPossibleError, SpoolLockedError
from batchd.pool import fork_server

#: What earlier daemons have said is kept up to here (bytes).
_MOST_SAID = 1 << 20


class _Word:
    """The one thing that is said to who waits: that it is up, or why it is not."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def up(self) -> None:
        """Say that it is up."""
        self.say()

    def say(self, **word: object) -> bool:
        """Say it, the first time; return whether that was it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return False
        with contextlib.suppress(OSError):  # no one waits any more
            os.write(descriptor, json.dumps(word).encode() + b"\n")
        os.close(descriptor)
        return True


def serve(
    settings: config.Config,
    processes: int | None,
    going: int,
    saying: int,
    *,
    unblocked: Collection[int],
) -> NoReturn:
    """Be a daemon that works for ``run`` alone, once something is written to ``going``;
    say how that goes to ``saying``.

    ``unblocked``: the mask of signals that counts from now on.
    """
    code, word = 1, _Word(saying)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        # The form of its lines is that of the terminal on which it is asked for.
        columns = settings.log.format == "auto" and os.isatty(2)
        work = _loaded(settings, going, saying)
        form = "console" if columns else settings.log.format
        log.configure(formatting.level(settings), form, settings.log.file)
        work(_passing(settings, processes), word.up)
        code = 0
    except SpoolLockedError:
        word.say(locked=True)
    except KeyboardInterrupt:
        pass  # before it had left the group of who waits
    except OSError as error:
        # A folder that is closed to this user, a disk that is full:
        # of the user's world, unless it is at work already.
        code, said = NotPossibleError.exit_code, barred.failed(error)
        if isinstance(error, PermissionError):
            said = barred.closed("run", error, sys.argv[1:])
        if not word.say(error=said, exit_code=code):
            traceback.print_exc()
    except BatchdError as error:
        code = error.exit_code
        if not word.say(error=str(error), exit_code=code):
            print(f"batchd: {log.escape(str(error))}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 (the outer edge of this process, as Python's own would do)
        traceback.print_exc()
    finally:
        fork_server.abandon()
        sys.stderr.flush()
        os._exit(code)


def _loaded(
    settings: config.Config, going: int, saying: int
) -> Callable[[config.Config, Callable[[], None]], None]:
    """Load everything, and wait to be let go;
    return what works by a configuration, and calls back once it is up.

    Where it is dismissed instead, by SIGTERM or because who asked is gone,
    that is the process's end.
    """
    dismissed: list[int] = []
    # A fork server that is only half begun cannot be ended: so this waits until it is.
    signal.signal(signal.SIGTERM, lambda number, _: dismissed.append(number))
    # It may outlive the directory in which it was asked for.
    os.chdir("/")
    folder, kept = Path(settings.paths.state, "pool"), (going, saying)
    # In a spool that is not there yet, or is another user's, nothing is made before it is let go.
    if early := fork_server.settled(folder):
        _let_go(said_in(settings), kept)
        fork_server.warm(folder)
    signal.signal(signal.SIGTERM, _dismissed)
    if dismissed:
        _dismissed()

    from batchd.daemon import Daemon, run  # loads everything; who waits needs none of it
    from batchd.report.maker import ReportMaker

    if not os.read(going, 1):
        _dismissed()
    os.close(going)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not early:
        _let_go(said_in(settings), kept)
        fork_server.warm(folder)
    if os.fstat(sys.stderr.fileno()).st_size > _MOST_SAID:
        os.ftruncate(sys.stderr.fileno(), 0)

    def work(settings: config.Config, ready: Callable[[], None]) -> None:
        daemon = Daemon(settings, watch=False, errands=True, finishers=[ReportMaker()])
        run(daemon.run_errands(ready))

    return work


def _dismissed(*_: object) -> NoReturn:
    fork_server.abandon()
    os._exit(0)


def said_in(settings: config.Config) -> Path:
    """Return the file that a daemon's lines go to:
    it may outlive the terminal of who waits, who shows them there.
    """
    return Path(settings.paths.state, "run.log")


def _let_go(said: Path, kept: Collection[int]) -> None:
    """Close what belongs to who waits: input, output, errors,
    and what a shell had open for it, as a lock of `flock`.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    lines = os.open(said, flags, 0o600)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(lines, 2)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        # Python's own are never inherited.
        with contextlib.suppress(OSError):
            if (
                descriptor > 2 and descriptor not in kept and os.get_inheritable(descriptor)
            ):  # stderr
                os.close(descriptor)


def _passing(settings: config.Config, processes: int | None) -> config.Config:
    """Return the configuration of a daemon that somebody waits for: nothing is parked for long."""
    pool = settings.pool
    if processes is not None:
        pool = dataclasses.replace(pool, processes=processes)
    # None joins it: its workers are of this machine.
    pool = dataclasses.replace(
        pool, engine="local", processes=max(1, pool.processes), listen="", advertise=""
    )
    governor = dataclasses.replace(settings.governor, max_parked_s=0.0)
    return dataclasses.replace(settings, pool=pool, governor=governor)
