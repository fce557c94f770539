"""The guard: a tiny process that outlives this one by a moment, and kills what it leaves running.

bwrap asks the kernel to be killed with its parent, but late: a worker that dies within the first
milliseconds of a command would leave it behind for ever. And a plain process group is not killed at
all. The guard is told of every process before it may do anything, and of its end; when the pipe to
it closes, which the kernel does whatever kills us, it kills those that are left.
"""

from __future__ import annotations

import contextlib
import functools
import os

# Numbers are forgotten before they can be used again: while their process, dead, is not waited for yet.
_SCRIPT = """
trap '' HUP INT TERM QUIT
live=' '
while read -r told; do
    number=${told#?}
    case $told in
        +*) live="$live$number " ;;
        -*) live="${live%% $number *} ${live#* $number }" ;;
    esac
done
for number in $live; do kill -9 -$number; kill -9 $number; done
"""


class Guard:
    """Knows, for one process, the groups of processes that must not outlive it."""

    def __init__(self) -> None:
        self._live: set[int] = set()
        self._told = _started()

    def watch(self, number: int) -> None:
        """Kill this process, and the group of the same number, when we are gone. Raises ``OSError``."""
        self._live.add(number)
        try:
            os.write(self._told, b"+%d\n" % number)
        except BrokenPipeError:
            os.close(self._told)
            self._told = _started()
            os.write(self._told, b"".join(b"+%d\n" % live for live in sorted(self._live)))

    def forget(self, number: int) -> None:
        """Do not any more; call it before the process is waited for."""
        self._live.discard(number)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._told, b"-%d\n" % number)


def _started() -> int:
    """Start the process, and return the pipe to it."""
    heard, told = os.pipe()
    devnull = os.devnull
    try:
        os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _SCRIPT],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, heard, 0),
                (os.POSIX_SPAWN_OPEN, 1, devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
    finally:
        os.close(heard)
    return told


def guard() -> Guard:
    """Return this process's guard; the first call starts it. Raises ``OSError``."""
    return _of(os.getpid())


@functools.cache
def _of(_pid: int) -> Guard:
    return Guard()
