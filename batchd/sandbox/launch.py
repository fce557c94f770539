"""The launch of a command: inside bubblewrap or,
under ``backend = "none"``, as a plain process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
from collections.abc import Iterable, Mapping, Sequence

from batchd.sandbox.bwrap import BASE, TASK, TMP, CommandView, encoded, opened
from batchd.sandbox.cgroup import TaskCgroup
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.guard import guard
from batchd.sandbox.memory_files import memory_file, write_all

#: Enters the directory on descriptor 3, as ``posix_spawn`` cannot, and becomes the command.
_ENTER = 'cd -P /proc/self/fd/3 && exec 3<&- && exec "$@"'
#: Where memory runs out, the kernel takes a command before it takes the daemon.
_OOM_SCORE = b"800"
_SYS_CLOSE_RANGE = 436  # on all processors
_CLOSE_RANGE_CLOEXEC = 4
#: Ignored by Python, which its children would inherit.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
# glibc's, see spawn.h.
_SETSIGDEF, _SETSID, _SETCGROUP = 0x04, 0x80, 0x100
#: More than any of the types that libc keeps to itself takes.
_OPAQUE = 1024


def sandboxed(
    bwrap: str,
    view: CommandView,
    folders: TaskFolders,
    command: Sequence[bytes],
    *,
    stdin: int | None,
    output: int,
    group: TaskCgroup | None = None,
    cover: Sequence[str] = (),
    stays: bool = False,
) -> ChildProcess:
    """Start ``command`` in a sandbox of its own; under a ``gated`` view it waits to be released.

    Raises ``OSError``.

    ``cover``: options that lay something over what it would see. ``stays``: what the command leaves
    running goes on in it, else the sandbox ends with the command;
    and with the thread that calls this, so call it from one that lasts.
    """
    status, status_end = os.pipe()
    passed, gate = [status_end], None
    try:
        os.set_blocking(status, False)
        options = ["--json-status-fd", str(status_end), *_bound(folders)]
        # What stays outlives the process that this binds it to;
        # then the guard alone sees to its end.
        options += [] if stays else ["--die-with-parent"]
        if view.gated:
            held, gate = os.pipe()
            passed.append(held)
            options += ["--block-fd", str(held)]
        for before, path, behind in view.contents:
            descriptor = os.open(path, os.O_RDONLY)
            passed.append(descriptor)
            options += [*before, str(descriptor), *behind]
        for place in view.copied:
            if (found := opened(place)) is not None:
                passed.append(found)
                options += ["--perms", "0444", "--file", str(found), place]
            else:  # it is another one by now
                options += ["--ro-bind-try", place, place]
        # In a file: what a pipe takes at once depends on all others of this user,
        # a task's among them.
        over = b"".join(os.fsencode(word) + b"\0" for word in cover)
        common = memory_file(view.options + over + view.last)
        passed.append(common)
        wanted, arguments = os.pipe()
        try:
            passed.append(wanted)
            own = ["--args", str(wanted), "--args", str(common)]
            words: list[str | bytes] = [*own, "--", *view.before, *command]
            # Each onto itself: that leaves it open at the exec.
            same = [(descriptor, descriptor) for descriptor in (*passed, *folders.given())]
            name = guard().name
            pid = spawn(bwrap, [name, *words], {}, same, stdin=stdin, output=output, group=group)
            child = _watched(pid, status, gate, group)
            # bwrap waits for the first of its arguments, fewer than any pipe takes: whenever this
            # process dies, the child is either known to the guard or without them.
            # One that is dead says so at its end.
            with contextlib.suppress(ProcessLookupError, BrokenPipeError):
                for kind, value in view.limits:
                    resource.prlimit(child.pid, kind, (value, value))
                write_all(arguments, encoded(options))
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


def _bound(folders: TaskFolders) -> list[str]:
    """Return the options by which commands see what they are given."""
    options = ["--bind-fd", str(folders.task), TASK]
    if folders.tmp is not None:
        options += ["--bind-fd", str(folders.tmp), TMP]
    if folders.base is not None:
        options += ["--ro-bind-fd", str(folders.base), BASE]
    return options


def plain(
    directory: int,
    env: Mapping[str, str],
    command: Sequence[bytes],
    *,
    stdin: int | None,
    output: int,
) -> ChildProcess:
    """Start ``command`` as a process group of its own, without any protection.

    Raises ``OSError``.
    """
    argv: list[str | bytes] = ["sh", "-c", _ENTER, "sh", *command]
    return _watched(spawn("/bin/sh", argv, env, [(directory, 3)], stdin=stdin, output=output))


def helper(argv: Sequence[str], line: int, group: TaskCgroup | None = None) -> ChildProcess:
    """Start a program of ours whose output is a socket, in a cgroup where one is given.

    Raises ``OSError``.
    """
    return _watched(spawn(argv[0], list(argv), {}, (), stdin=None, output=line, group=group))


def _watched(
    pid: int, status: int | None = None, gate: int | None = None, group: TaskCgroup | None = None
) -> ChildProcess:
    """Return a process that was just started as the guard's child;
    where it cannot be guarded, it is killed.
    """
    try:
        return ChildProcess(pid, status, gate, group)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def spawn(
    path: str,
    argv: list[str | bytes],
    env: Mapping[str, str],
    passed: Iterable[tuple[int, int]],
    *,
    stdin: int | None,
    output: int,
    group: TaskCgroup | None = None,
) -> int:
    """Start a program that gets, beside the usual three,
    only these descriptors, each under its new number.

    Without ``stdin`` it has nothing to read. It has no terminal to reach, and is a process group to
    kill. Raises ``OSError``.
    """
    source = [] if stdin is None else [(stdin, 0)]
    copies = [*source, (output, 1), (output, 2), *passed]
    _withhold()
    if group is not None and _knows_groups():
        pid = _into(group, path, argv, env, copies, silent=stdin is None)
    else:
        opened = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)] if stdin is None else []
        pid = os.posix_spawn(
            path,
            argv,
            env,
            file_actions=[*opened, *((os.POSIX_SPAWN_DUP2, *pair) for pair in copies)],
            setsid=True,
            setsigdef=_DEFAULT_SIGNALS,
        )
        if group is not None:
            group.enter(pid)
    with contextlib.suppress(OSError):
        score = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY)
        try:
            os.write(score, _OOM_SCORE)
        finally:
            os.close(score)
    return pid


@functools.cache
def _knows_groups() -> bool:
    """Return whether libc can start a process in a cgroup:
    to move one there takes the kernel ten milliseconds.
    """
    return hasattr(_libc(), "posix_spawnattr_setcgroup_np")


def _into(
    group: TaskCgroup,
    path: str,
    argv: list[str | bytes],
    env: Mapping[str, str],
    copies: Iterable[tuple[int, int]],
    *,
    silent: bool,
) -> int:
    """Start a process in a cgroup, as ``os.posix_spawn`` cannot."""
    libc = _libc()
    actions, attributes = (ctypes.create_string_buffer(_OPAQUE) for _ in range(2))
    signals = ctypes.create_string_buffer(_OPAQUE)
    _checked(libc.posix_spawn_file_actions_init(actions))
    _checked(libc.posix_spawnattr_init(attributes))
    try:
        libc.sigemptyset(signals)
        for number in _DEFAULT_SIGNALS:
            libc.sigaddset(signals, int(number))
        flags = ctypes.c_short(_SETSIGDEF | _SETSID | _SETCGROUP)
        _checked(libc.posix_spawnattr_setflags(attributes, flags))
        _checked(libc.posix_spawnattr_setsigdefault(attributes, signals))
        _checked(libc.posix_spawnattr_setcgroup_np(attributes, group.descriptor))
        if silent:
            nothing = os.devnull.encode()
            _checked(libc.posix_spawn_file_actions_addopen(actions, 0, nothing, os.O_RDONLY, 0))
        for pair in copies:
            _checked(libc.posix_spawn_file_actions_adddup2(actions, *pair))
        pid = ctypes.c_int()
        words = [os.fsencode(word) for word in argv]
        variables = [os.fsencode(f"{name}={value}") for name, value in env.items()]
        argvs = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        envs = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
        program = os.fsencode(path)
        started = libc.posix_spawn(ctypes.byref(pid), program, actions, attributes, argvs, envs)
        _checked(started)
        return pid.value
    finally:
        libc.posix_spawnattr_destroy(attributes)
        libc.posix_spawn_file_actions_destroy(actions)


def _checked(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


def _withhold() -> None:
    """Make the kernel close every descriptor of this process at an exec,
    also one that a library left open for it.
    """
    arguments = map(ctypes.c_long, (_SYS_CLOSE_RANGE, 3, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC))
    if _libc().syscall(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"close_range: {os.strerror(number)}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
