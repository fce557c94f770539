"""The fork server: where its sockets lie, how it is started and ended, and how its child begins.

``multiprocessing`` has one a process. It loads what workers need once, and forks them off.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

from batchd import processes

#: Of a folder that leaves room for a socket's name in its address.
_MOST_PATH_BYTES = 85
#: Our own entry in the settings of ``multiprocessing``: the folder of sockets,
#: by a path that always leads there.
_BY_DESCRIPTOR = "batchd_sockets"

#: What the fork server loads.
_LOADED = "batchd.pool.preload"
# Linux's, which Python's fcntl does not name before 3.13's F_SETSIG on some builds.
_F_SETSIG = 10
FORKSERVER = multiprocessing.get_context("forkserver")


def end() -> None:
    """Kill the fork server, which does not answer:
    what waits for it fails, and the next start makes another.
    """
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def warm(folder: Path) -> None:
    """Start the fork server ahead of all that this process has to load: both load at the same time.

    Nothing is begun where ``folder`` is not there yet, or is another user's:
    whether that may be so, the daemon finds out.
    """
    with contextlib.suppress(OSError):
        if settled(folder):
            _settle_in(folder)
            with unharmed():
                forkserver.ensure_running()


def settled(folder: Path) -> bool:
    """Return whether a folder is there for sockets, and this user's."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def abandon() -> None:
    """End the fork server, and take its socket away:
    this process needs it no more, or does not come to it.
    """
    address = getattr(forkserver._forkserver, "_forkserver_address", None)
    end()
    if address:
        with contextlib.suppress(OSError):
            os.unlink(address)


def prepare(folder: Path) -> None:
    """Choose ``folder``, which is this daemon's alone, for the fork server's sockets.

    What a daemon that was killed has left there goes: in a temporary folder it would stay for ever.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = getattr(forkserver._forkserver, "_forkserver_address", None) or ""
    in_use = Path(address).name
    for path in folder.glob("listener-*"):
        if path.name != in_use:
            path.unlink(missing_ok=True)
    if not (in_use and (folder / in_use).exists()):
        _settle_in(folder)


def _settle_in(folder: Path) -> None:
    """Say what the fork server is to load, and where its sockets are made."""
    FORKSERVER.set_forkserver_preload([_LOADED])
    util._args_from_interpreter_flags = _flags  # type: ignore[attr-defined]
    # By its descriptor, which is never closed: 108 bytes are all that a socket's address holds.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    settings = _settings()
    settings[_BY_DESCRIPTOR] = settings["tempdir"] = f"/proc/self/fd/{descriptor}"
    if folder.is_absolute() and len(os.fsencode(folder)) <= _MOST_PATH_BYTES:
        # By its path a look for sockets below some folder shows at once that it lies elsewhere.
        settings["tempdir"] = str(folder)


def move() -> None:
    """Choose the place where the folder is now for the next fork server's socket:
    it was moved, or the socket taken away.
    """
    settings = _settings()
    settings["tempdir"] = settings.get(_BY_DESCRIPTOR, settings.get("tempdir"))


def _settings() -> dict[str, Any]:
    """Return what ``multiprocessing`` goes by in this process."""
    found: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    return found


def _flags() -> list[str]:
    """Return the options of an interpreter that is like this one,
    and has no modules from the working directory.

    ``multiprocessing`` starts its own with ``-c``, which looks there first;
    and a model may have written there.
    """
    return [*subprocess._args_from_interpreter_flags(), "-P"]  # type: ignore[attr-defined]


@contextlib.contextmanager
def unharmed() -> Iterator[None]:
    """Keep Ctrl-C from a fork server that is started within:
    it reaches the whole group, and finds no handler while that loads.

    The mask is inherited; ``child`` lifts it. The tracker would lift it at its start.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
