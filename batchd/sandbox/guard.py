"""The guard: a tiny process that outlives this one by a moment, and kills what it leaves running.

bwrap asks the kernel to be killed with its parent, but late: a worker that dies within the first
milliseconds of a command would leave it behind for ever. And a plain process group is not killed at
all. The guard has a list of all processes, in memory that it shares: each stands there before it
may do anything, and until it is waited for. When the pipe to the guard closes, which the kernel
does whatever kills us, it kills those that are left. Nothing is sent meanwhile: to wake it for each
process takes longer than to start one.
"""

from __future__ import annotations

import functools
import os
import secrets
import select

_SCRIPT = """
trap '' HUP INT TERM QUIT
read -r nothing
live=
while read -r number; do live="$live $number"; done <&3
set -- $live
[ $# = 0 ] && exit
for number; do kill -9 -$number; kill -9 $number; done
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

#: A number's line: written at once, it is there whole or not at all.
_LINE = b"%-7d\n"
_FREE = b"       \n"


class Guard:
    """Knows, for one process, the groups of processes that must not outlive it."""

    def __init__(self) -> None:
        #: By number: its line in the list. Lines that are free are used again.
        self._live: dict[int, int] = {}
        self._free: list[int] = []
        self._list = os.memfd_create("guard", os.MFD_CLOEXEC)
        #: What bwrap must be started as, so that its processes are known by it.
        self.name = f"bwrap:{secrets.token_hex(8)}"
        self._begin()

    def watch(self, number: int) -> None:
        """Kill this process, and the group of the same number, when we are gone.

        Raises ``OSError``.
        """
        if number in self._live:
            return
        if self._broken.poll(0):  # it was killed
            broken = self._pipe
            self._begin()
            os.close(broken)
        line = self._free[-1] if self._free else len(self._live)
        os.pwrite(self._list, _LINE % number, line * len(_FREE))
        self._live[number] = line
        del self._free[-1:]

    def forget(self, *numbers: int | None) -> None:
        """Stop watching processes; call it before they are waited for,
        after which their numbers can be used again.

        What it never watched does not matter.
        """
        for number in self._live.keys() & set(numbers):
            line = self._live.pop(number)
            os.pwrite(self._list, _FREE, line * len(_FREE))
            self._free.append(line)

    def _begin(self) -> None:
        """Start the process. Raises ``OSError``."""
        reading, writing = os.pipe()
        devnull = os.devnull
        try:
            os.posix_spawn(
                "/bin/sh",
                ["/bin/sh", "-c", _SCRIPT],
                {"NAME": self.name},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reading, 0),
                    (os.POSIX_SPAWN_DUP2, self._list, 3),
                    (os.POSIX_SPAWN_OPEN, 1, devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
            )
        finally:
            os.close(reading)
        self._pipe = writing
        self._broken = select.poll()
        self._broken.register(self._pipe, 0)


def guard() -> Guard:
    """Return this process's guard; the first call starts it. Raises ``OSError``."""
    return _of(os.getpid())


@functools.cache
def _of(_pid: int) -> Guard:
    return Guard()
