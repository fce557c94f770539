"""The launch of a sandbox or, under ``backend = "none"``, of a command as a plain process group."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence

from batchd import trees
from batchd.sandbox.bwrap import BASE, TASK, TMP, CommandView, encoded, opened
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.folders import TaskFolders
from batchd.sandbox.guard import guard
from batchd.sandbox.memory_files import memory_file

#: Enters the directory on descriptor 3, as ``posix_spawn`` cannot, and becomes the command.
_ENTER = 'cd -P /proc/self/fd/3 && exec 3<&- && exec "$@"'
#: The first process of a sandbox, which nothing inside can end: it says when all is made, and lives
#: as long as somebody may still write to it. For whose end it ignores, the kernel waits.
_FIRST = ("/usr/bin/env", "-i", "--ignore-signal=CHLD", "/bin/cat")
#: By this number bwrap finds where it reports on itself, and by the next ones what it is given:
#: more than who starts it has open.
GIVEN = 100
#: Where memory runs out, the kernel takes a command before it takes the daemon:
#: each process has it of who started it.
_OOM_SCORE = b"800"
_SYS_CLOSE_RANGE = 436  # on all processors
_CLOSE_RANGE_CLOEXEC = 4
#: Ignored by Python, which its children would inherit.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)


@contextlib.contextmanager
def sandboxed(
    bwrap: str, view: CommandView, folders: TaskFolders, cover: Sequence[str]
) -> Iterator[tuple[list[bytes], list[int]]]:
    """Give what starts a sandbox in which nothing runs but its first process: the path of bwrap
    and its command line; and the descriptors that stand there by number, from ``GIVEN`` on.

    The first process copies what comes to its standard input, until nobody may write to it.
    ``cover``: options that lay something over what is seen there. Raises ``OSError``.
    """
    opening = contextlib.ExitStack()
    given: list[int] = []

    def numbered(descriptor: int) -> str:
        given.append(descriptor)
        return str(GIVEN + len(given))

    def held(descriptor: int) -> int:
        opening.callback(os.close, descriptor)
        return descriptor

    def copied(descriptor: int, place: str) -> list[str]:
        return ["--perms", "0444", "--file", numbered(held(descriptor)), place]

    with opening:
        options = ["--json-status-fd", str(GIVEN), "--die-with-parent"]
        options += ["--bind-fd", numbered(folders.task), TASK]
        if folders.tmp is not None:
            options += ["--bind-fd", numbered(folders.tmp), TMP]
        if folders.base is not None:
            options += ["--ro-bind-fd", numbered(folders.base), BASE]
        for place, path in view.contents:
            options += copied(os.open(path, os.O_RDONLY), place)
        for place in view.copied:
            found = opened(place)  # None: it is another one by now
            options += ["--ro-bind-try", place, place] if found is None else copied(found, place)
        # In a file: what a pipe takes at once depends on all others of this user,
        # a task's among them.
        over = b"".join(os.fsencode(word) + b"\0" for word in cover)
        data = encoded(options) + view.options + over + view.last
        common = numbered(held(memory_file(data)))
        words = [bwrap, guard().name, "--args", common, "--as-pid-1", "--", *_FIRST]
        yield [os.fsencode(word) for word in words], given


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
    pid = spawn("/bin/sh", argv, env, [(directory, 3)], stdin=stdin, output=output)
    try:
        return ChildProcess(pid)
    except OSError:  # it cannot be guarded
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
) -> int:
    """Start a program that gets, beside the usual three,
    only these descriptors, each under its new number.

    Without ``stdin`` it has nothing to read. It has no terminal to reach, and is a process group to
    kill. Raises ``OSError``.
    """
    silent = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)] if stdin is None else []
    source = [] if stdin is None else [(stdin, 0)]
    copies = [*source, (output, 1), (output, 2), *passed]
    _withhold()
    pid = os.posix_spawn(
        path,
        argv,
        env,
        file_actions=[*silent, *((os.POSIX_SPAWN_DUP2, *pair) for pair in copies)],
        setsid=True,
        setsigdef=_DEFAULT_SIGNALS,
    )
    path = f"/proc/{pid}/oom_score_adj"
    with contextlib.suppress(OSError), trees.held(os.open(path, os.O_WRONLY)) as score:
        os.write(score, _OOM_SCORE)
    return pid


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
