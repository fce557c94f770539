"""Does to every process whose number it is given, and to all of its user,
what may be done to a process; prints which it hit.

Arguments: ranges of numbers, as FIRST-LAST.
"""

import os
import resource
import signal
import sys

mine = {os.getpid(), os.getppid()}
hit = []
ways = (
    lambda pid: os.kill(pid, signal.SIGSTOP),
    lambda pid: os.kill(pid, signal.SIGKILL),
    lambda pid: os.killpg(pid, signal.SIGKILL),
    lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19),
    lambda pid: os.sched_setaffinity(pid, {0}),
    lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
    os.pidfd_open,
)
numbers = [-1]
for given in sys.argv[1:]:
    first, last = map(int, given.split("-"))
    numbers += range(first, last + 1)
for pid in numbers:
    if pid not in mine:
        for way in ways:
            try:
                way(pid)
                hit.append(pid)
            except (OSError, ValueError):
                pass
os.setpriority(os.PRIO_USER, os.getuid(), 19)
print("tried", len(hit))
