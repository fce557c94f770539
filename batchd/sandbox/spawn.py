"""The start of a process with exactly the descriptors that it is meant to have,
in a cgroup of its own where there is one.

``posix_spawn`` costs half of what ``Popen`` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Iterable, Mapping

from batchd.sandbox.cgroup import TaskCgroup

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
