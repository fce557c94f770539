"""The keeper: what is run on another machine. It starts a worker there, and ends it when its lease does.

A process apart, for a worker that hangs, or that was stopped and goes on, does not see to that itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys

from batchd import children
from batchd.pool.joining import lease
from batchd.pool.joining.ticket import Ticket

#: What a worker gets until it is let in, and how often it is looked at, in seconds.
START_S = 60.0
_LOOK_S = 0.5
#: One end of a lease, as the worker writes it.
END = struct.Struct("<d")
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def keep(ticket: Ticket, node: str) -> int:
    """Run a worker until it ends, and return its exit code. SIGTERM has it give its tasks back first; a second one ends it."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        worker = subprocess.Popen(
            children.module("batchd.pool.joining", node, str(writing)),
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        assert worker.stdin is not None, "a pipe was asked for"
        with contextlib.suppress(BrokenPipeError), worker.stdin:
            worker.stdin.write(f"{ticket}\n".encode())
        return _watch(worker, reading)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(worker: subprocess.Popen[bytes], reading: int) -> int:
    until, asked = lease.now() + START_S, False
    while (code := worker.poll()) is None:
        left_s = until - lease.now()
        if left_s <= 0:
            worker.kill()
            worker.wait()
            sys.stderr.write("batchd worker: its lease is over, without word from the daemon\n")
            return 3
        came = signal.sigtimedwait(_SIGNALS, min(_LOOK_S, left_s))
        if came is not None and came.si_signo != signal.SIGCHLD:
            worker.send_signal(signal.SIGKILL if asked else signal.SIGTERM)
            asked = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reading, END.size):
                (until,) = END.unpack(data)
    return code if code >= 0 else 3
