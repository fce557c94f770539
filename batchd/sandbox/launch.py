"""Starts a command: inside bubblewrap or, under ``backend = "none"``, as a plain process group."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from batchd.sandbox.bwrap import TASK, View, encoded
from batchd.sandbox.child import Child

#: Where memory runs out, the kernel takes a command before it takes the daemon.
_OOM_SCORE = "800"
_PIPE_BYTES = 1 << 16


def memory_file(data: bytes) -> int:
    """Return a descriptor from which ``data`` can be read once."""
    descriptor = os.memfd_create("batchd", os.MFD_CLOEXEC)
    try:
        _write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sandboxed(
    bwrap: str, view: View, directory: int, command: Sequence[bytes], *, stdin: int, output: int
) -> Child:
    """Start ``command`` in a sandbox of its own. Raises ``OSError``.

    The sandbox ends with the thread that calls this, so call it from one that stays.
    """
    with contextlib.ExitStack() as passed, contextlib.ExitStack() as kept:
        status, status_end = os.pipe()
        kept.callback(os.close, status)
        passed.callback(os.close, status_end)
        os.set_blocking(status, False)
        options = ["--json-status-fd", str(status_end)]
        descriptors = [status_end, directory]
        for words, data, path in _contents(view):
            descriptor = memory_file(data)
            passed.callback(os.close, descriptor)
            descriptors.append(descriptor)
            options += [*words, str(descriptor), *path]
        options += ["--bind-fd", str(directory), TASK]
        wanted, arguments = os.pipe()
        passed.callback(os.close, wanted)
        passed.callback(os.close, arguments)
        process = _spawn(
            [bwrap, "--args", str(wanted), "--", *view.before, *command],
            env={},
            stdin=stdin,
            output=output,
            descriptors=(*descriptors, wanted),
        )
        child = Child(process, status)
        kept.pop_all()
        # bwrap waits for its arguments: whenever this process dies, the child is either known to the
        # guard or without them. One that is dead already says so at its end.
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            for kind, value in view.limits:
                resource.prlimit(process.pid, kind, (value, value))
            _fill(arguments, encoded(options) + view.options)
    return child


def plain(
    directory: int, env: Mapping[str, str], command: Sequence[bytes], *, stdin: int, output: int
) -> Child:
    """Start ``command`` as a process group of its own, without any protection. Raises ``OSError``."""
    place = f"/proc/self/fd/{directory}"
    return Child(_spawn(command, env=env, stdin=stdin, output=output, cwd=place))


def _contents(view: View) -> Iterable[tuple[tuple[str, ...], bytes, tuple[str, ...]]]:
    """Return what bwrap reads from descriptors: the words before it, the bytes, the words behind."""
    yield ("--seccomp",), view.filter, ()
    for path, data in view.files.items():
        yield ("--perms", "0444", "--file"), data, (path,)


def _spawn(
    argv: Sequence[str | bytes],
    *,
    env: Mapping[str, str],
    stdin: int,
    output: int,
    descriptors: Sequence[int] = (),
    cwd: str = "/",
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=stdin,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        cwd=cwd,
        # No terminal to reach, and a process group to kill.
        start_new_session=True,
    )
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    return process


def _fill(pipe: int, data: bytes) -> None:
    """Write to a pipe that nobody may be reading yet."""
    if len(data) > _PIPE_BYTES:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, len(data))
    _write(pipe, data)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
