"""Starts a command: inside bubblewrap or, under ``backend = "none"``, as a plain process group."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import resource
import signal
from collections.abc import Iterable, Mapping, Sequence

from batchd.sandbox.bwrap import TASK, View, encoded
from batchd.sandbox.child import Child
from batchd.sandbox.guard import guard
from batchd.sandbox.memory import write_all

#: Where memory runs out, the kernel takes a command before it takes the daemon.
_OOM_SCORE = b"800"
_PIPE_BYTES = 1 << 16
_SYS_CLOSE_RANGE = 436  # on all processors
_CLOSE_RANGE_CLOEXEC = 4
#: Enters the directory on descriptor 3, as ``posix_spawn`` cannot, and becomes the command.
_ENTER = 'cd -P /proc/self/fd/3 && exec 3<&- && exec "$@"'


def sandboxed(
    bwrap: str,
    view: View,
    directory: int,
    command: Sequence[bytes],
    *,
    stdin: int | None,
    output: int,
) -> Child:
    """Start ``command`` in a sandbox of its own; under a ``gated`` view it waits to be released. Raises ``OSError``.

    The sandbox ends with the thread that calls this, so call it from one that stays.
    """
    status, status_end = os.pipe()
    passed, gate = [status_end], None
    try:
        os.set_blocking(status, False)
        options = ["--json-status-fd", str(status_end), "--bind-fd", str(directory), TASK]
        if view.gated:
            held, gate = os.pipe()
            passed.append(held)
            options += ["--block-fd", str(held)]
        for before, path, behind in view.contents:
            descriptor = os.open(path, os.O_RDONLY)
            passed.append(descriptor)
            options += [*before, str(descriptor), *behind]
        wanted, arguments = os.pipe()
        try:
            passed.append(wanted)
            words: list[str | bytes] = ["--args", str(wanted), "--", *view.before, *command]
            # Each onto itself: that leaves it open at the exec.
            same = [(descriptor, descriptor) for descriptor in (*passed, directory)]
            pid = _spawn(bwrap, [guard().name, *words], {}, same, stdin=stdin, output=output)
            child = _watched(pid, status, gate)
            # bwrap waits for its arguments: whenever this process dies, the child is either known to
            # the guard or without them. One that is dead already says so at its end.
            with contextlib.suppress(ProcessLookupError, BrokenPipeError):
                for kind, value in view.limits:
                    resource.prlimit(child.pid, kind, (value, value))
                _fill(arguments, encoded(options) + view.options)
        finally:
            os.close(arguments)
    except BaseException:
        os.close(status)
        if gate is not None:
            os.close(gate)
        raise
    finally:
        for descriptor in passed:
            os.close(descriptor)
    return child


def plain(
    directory: int,
    env: Mapping[str, str],
    command: Sequence[bytes],
    *,
    stdin: int | None,
    output: int,
) -> Child:
    """Start ``command`` as a process group of its own, without any protection. Raises ``OSError``."""
    argv: list[str | bytes] = ["sh", "-c", _ENTER, "sh", *command]
    return _watched(_spawn("/bin/sh", argv, env, [(directory, 3)], stdin=stdin, output=output))


def helper(argv: Sequence[str], line: int) -> Child:
    """Start a program of ours that reads nothing and writes to a socket. Raises ``OSError``."""
    return _watched(_spawn(argv[0], list(argv), {}, (), stdin=None, output=line))


def _watched(pid: int, status: int | None = None, gate: int | None = None) -> Child:
    """Return a process that was just started as the guard's child; where nobody can guard it, it is killed."""
    try:
        return Child(pid, status, gate)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _spawn(
    path: str,
    argv: list[str | bytes],
    env: Mapping[str, str],
    passed: Iterable[tuple[int, int]],
    *,
    stdin: int | None,
    output: int,
) -> int:
    """Start a program that gets, beside the usual three, only these descriptors, each under its new number.

    Without ``stdin`` it has nothing to read. ``posix_spawn`` costs half of what ``Popen`` does.
    """
    source = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        if stdin is None
        else (os.POSIX_SPAWN_DUP2, stdin, 0)
    )
    copies = ((os.POSIX_SPAWN_DUP2, *pair) for pair in ((output, 1), (output, 2), *passed))
    _withhold()
    pid = os.posix_spawn(
        path,
        argv,
        env,
        file_actions=(source, *copies),
        # No terminal to reach, and a process group to kill.
        setsid=True,
        # Ignored by Python, which its children would inherit.
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )
    with contextlib.suppress(OSError):
        score = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY)
        try:
            os.write(score, _OOM_SCORE)
        finally:
            os.close(score)
    return pid


def _withhold() -> None:
    """Have every descriptor of this process closed at an exec, also one that a library left open for it."""
    arguments = map(ctypes.c_long, (_SYS_CLOSE_RANGE, 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC))
    if _libc().syscall(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"close_range: {os.strerror(number)}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _fill(pipe: int, data: bytes) -> None:
    """Write to a pipe that nobody may be reading yet."""
    if len(data) > _PIPE_BYTES:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, len(data))
    write_all(pipe, data)
