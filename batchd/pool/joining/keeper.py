"""The keeper: what is run on another machine.

It starts a worker there, and ends it when its lease does.

A process apart, for a worker that hangs,
or that was stopped and goes on, does not see to that itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import struct
import subprocess
import sys

from batchd import processes, sealing
from batchd.pool import lease
from batchd.pool.joining import dialling
from batchd.pool.joining.invitations import digest
from batchd.pool.joining.ticket import Ticket
from batchd.records import Has

#: What a worker gets until it is let in, and how often it is looked at, in seconds.
START_S = 60.0
_LOOK_S = 0.5
#: One end of a lease, as the worker writes it.
END = struct.Struct("<d")
_ENDING = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = {*_ENDING, signal.SIGCHLD}


def keep(
    way: Ticket, node: str, has: Has, cache: str, most_bytes: int, *, tied: bool = False
) -> int:
    """Run a worker until it ends, and return its exit code.

    SIGTERM has it give its tasks back first; a second one ends it.

    ``has``: what its machine has for its tasks. ``cache``: the folder of what it keeps on this
    machine, ``most_bytes`` of packs.
    ``tied``: it ends as well where the process that started this one has ended.
    """
    sealing.seal()  # of the ticket, and of the word that ends the worker
    parent, parting = os.getppid() if tied else 0, secrets.token_urlsafe()
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        worker = subprocess.Popen(
            processes.module(
                "batchd.pool.joining",
                *(node, str(writing), str(os.getpid()), cache, str(most_bytes)),
                *(str(has.gpus), *has.labels),
            ),
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        assert worker.stdin is not None, "a pipe was asked for"
        with contextlib.suppress(BrokenPipeError), worker.stdin:
            worker.stdin.write(f"{way}\n{digest(parting)}\n".encode())
        why, died = _watch(worker, reading, parent), False
        if not why and worker.returncode < 0:
            why, died = f"the worker was killed by {signal.Signals(-worker.returncode).name}", True
        if why:
            sys.stderr.write(f"batchd worker: {why}\n")
        with contextlib.suppress(OSError, ValueError):  # the daemon is gone, say
            dialling.report_end(way, parting, died=died)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 3 if why else worker.returncode


def _watch(worker: subprocess.Popen[bytes], reading: int, parent: int) -> str:
    """Return when the worker has ended: why it was ended, or nothing where it did so itself."""
    until, asked = lease.now() + START_S, False
    while worker.poll() is None:
        left_s, orphaned = until - lease.now(), parent and os.getppid() != parent
        if left_s <= 0 or orphaned:
            worker.kill()
            worker.wait()
            return "what started it has ended" if orphaned else "its lease is over"
        _reap(worker.pid)
        came = signal.sigtimedwait(_SIGNALS, min(_LOOK_S, left_s))
        # Where this process was stopped meanwhile, CPython may return a number that is no signal.
        if came is not None and came.si_signo in _ENDING:
            if asked:
                worker.kill()
                worker.wait()
                return "it was ended by a second signal"
            worker.send_signal(signal.SIGTERM)
            asked = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reading, END.size):
                (until,) = END.unpack(data)
    return ""


def _reap(worker: int) -> None:
    """Bury what the kernel hands to a container's first process, which this may be."""
    while os.getpid() == 1:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None or found.si_pid == worker:
            return
        os.waitpid(found.si_pid, 0)
