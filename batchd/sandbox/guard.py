"""The guard: a tiny process that outlives this one by a moment, and kills what it leaves running.

bwrap asks the kernel to be killed with its parent, but late: a worker that dies within the first
milliseconds of a command would leave it behind for ever. And a plain process group is not killed at
all. The guard learns of every process before it may do anything, and of its end; when the pipe to
it closes, which the kernel does whatever kills us, it kills those that are left.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets

# Numbers are forgotten before they can be used again:
# while their process, dead, is not waited for yet.
_SCRIPT = """
trap '' HUP INT TERM QUIT
live=' '
while read -r entry; do
    number=${entry#?}
    case $entry in
        +*) live="$live$number " ;;
        -*) live="${live%% $number *} ${live#* $number }" ;;
    esac
done
[ "$live" = ' ' ] && exit
for number in $live; do kill -9 -$number; kill -9 $number; done
# The first process of a sandbox leaves bwrap's group before it is bound to bwrap's life, and we may not
# know of it: it bears the name that bwrap was started with. A bwrap that was killed in the middle of its
# clone leaves one that no look before shows: two looks that find nothing end this.
tries=200 clean=0
while [ $clean -lt 2 ] && [ $tries -gt 0 ]; do
    tries=$((tries - 1)) clean=$((clean + 1))
    for file in /proc/[0-9]*/cmdline; do
        line=
        read -r line <"$file"
        number=${file#/proc/}
        case $line in "$NAME"*) clean=0 && kill -9 "${number%/cmdline}" ;; esac
    done
    [ $clean = 0 ] && sleep 0.05
done
"""


class Guard:
    """Knows, for one process, the groups of processes that must not outlive it."""

    def __init__(self) -> None:
        self._live: set[int] = set()
        #: What bwrap must be started as, so that its processes are known by it.
        self.name = f"bwrap:{secrets.token_hex(8)}"
        self._pipe = _started(self.name)

    def watch(self, number: int) -> None:
        """Kill this process, and the group of the same number, when we are gone.

        Raises ``OSError``.
        """
        if number in self._live:
            return
        self._live.add(number)
        try:
            os.write(self._pipe, b"+%d\n" % number)
        except BrokenPipeError:
            os.close(self._pipe)
            self._pipe = _started(self.name)
            os.write(self._pipe, b"".join(b"+%d\n" % live for live in sorted(self._live)))

    def forget(self, *numbers: int | None) -> None:
        """Stop watching processes; call it before they are waited for.

        What it never watched does not matter.
        """
        known = self._live.intersection(numbers)
        self._live -= known
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, b"".join(b"-%d\n" % number for number in known))


def _started(name: str) -> int:
    """Start the process, and return the pipe to it."""
    reading, writing = os.pipe()
    devnull = os.devnull
    try:
        os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _SCRIPT],
            {"NAME": name},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
    finally:
        os.close(reading)
    return writing


def guard() -> Guard:
    """Return this process's guard; the first call starts it. Raises ``OSError``."""
    return _of(os.getpid())


@functools.cache
def _of(_pid: int) -> Guard:
    return Guard()
