"""Leaves behind what can be left behind, in every way that we know of,
and writes down in which namespace it lives.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable


def ignore() -> None:
    """Ignore every signal that can be ignored."""
    for number in range(1, 65):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def stay(*before: Callable[[], object]) -> None:
    """Leave a process behind that does something first."""
    if os.fork():
        return
    for step in before:
        step()
    while True:
        time.sleep(1000)


def again() -> None:
    """Fork a second time: a child without a parent of its own."""
    if os.fork():
        os._exit(0)


def closed() -> None:
    """Close all descriptors."""
    os.closerange(0, 64)


def renamed() -> None:
    """Take the name of a thread of the kernel."""
    ctypes.CDLL(None).prctl(15, b"kworker/0:1", 0, 0, 0)


def stopped() -> None:
    """Stop."""
    os.kill(os.getpid(), signal.SIGSTOP)


def farm() -> None:
    """Keep zombies."""
    for _ in range(30):
        if not os.fork():
            os._exit(0)


def tree() -> None:
    """Become eight."""
    for _ in range(3):
        os.fork()


def traced() -> None:
    """Have the parent trace this process."""
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)


def grouped() -> None:
    """Leave the process group."""
    os.setpgid(0, 0)


def forking() -> None:
    """Change the process number faster than a signal can be sent to it."""
    end = time.time() + 60
    while time.time() < end:
        if os.fork():
            os._exit(0)
        time.sleep(0.002)


stay(os.setsid, again, ignore)
stay(os.setsid, again, ignore, closed)
stay(grouped, renamed, ignore)
stay(os.setsid, stopped)
stay(farm, ignore)
stay(traced, ignore)
stay(os.setsid, tree, ignore)
stay(os.setsid, ignore, forking)
trap = "trap '' HUP TERM INT; while :; do sleep 1000; done"
subprocess.run(f'nohup setsid sh -c "{trap}" >/dev/null 2>&1 &', shell=True, check=False)
with open("writing", "w") as file:
    file.write(os.readlink("/proc/self/ns/pid"))
os.rename("writing", "namespace")  # who looks for it finds it whole
time.sleep(0.1)
