"""A worker's first steps, apart from ``worker``,
so that the daemon can name them without loading it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import signal
import socket

from batchd import processes

# Linux's, which Python's fcntl does not name before 3.13's F_SETSIG on some builds.
_F_SETSIG = 10


def child(sock: socket.socket, lock: int, agent: str) -> None:
    """Be a worker: the target of the process that the fork server makes.

    ``lock`` holds the spool's lock for as long as this process lives. ``agent`` names the
    function that works on a task, ``module:function``.
    """
    processes.seal()  # it will hold keys
    die_with_daemon()
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN: commands that the worker starts would inherit that.
        signal.signal(signum, lambda *_: None)
    # What was held back while the fork server was started is not for commands to inherit.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    for descriptor in (sock.fileno(), lock):
        os.set_inheritable(descriptor, False)
    from batchd.pool import worker  # heavy; only the child may load it

    worker.main(sock, agent)


def die_with_daemon() -> None:
    """Tie this process's life to the daemon's: the kernel ends it, stopped or busy as it may be.

    PR_SET_PDEATHSIG would not: the parent of this process is the fork server.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not a child process")
    pipe = parent.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:  # the daemon died before the signal was armed
        os.kill(os.getpid(), signal.SIGKILL)
