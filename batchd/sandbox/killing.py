"""The killing of a command in a standing sandbox,
with what it has started, apart from what ran before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from batchd.sandbox.process_table import ProcessTable, ProcessUsage, read

#: A killed process is dead, and waited for, within so many looks,
#: with a pause before each (seconds).
LOOKS, PAUSE_S = 20, 0.05


def killed(command: int, first: int, ours: AbstractSet[int]) -> bool:
    """Kill a command that has entered the sandbox of ``first``;
    return whether nothing is left that may be of it.

    ``ours``: processes of ours there. The command must not be waited for yet. Blocks for a moment.
    """
    before = ProcessTable.read()
    its = before.processes.get(command)
    if its is None:
        return False
    for process in before.of(command):
        _kill(process)
    # What it has started may be dead, and the sandbox's first process not have seen that yet.
    for _ in range(LOOKS):
        time.sleep(PAUSE_S)
        if _nothing_since(its.started, first, ours):
            return True
    return False


def wait_for_strays(inside: int, first: int) -> None:
    """Wait for children of ours that are dead, and lived
    in a namespace of processes, its first one apart.
    """
    for process in ProcessTable.read().processes.values():
        if process.parent == os.getpid() and process.number != first:
            with contextlib.suppress(OSError):
                if namespace(process.number) == inside:
                    os.waitid(os.P_PID, process.number, os.WEXITED | os.WNOHANG)


def namespace(number: int) -> int:
    """Return the number of a process's namespace of processes. Raises ``OSError``."""
    return Path(f"/proc/{number}/ns/pid").stat().st_ino


def _nothing_since(began: int, first: int, ours: AbstractSet[int]) -> bool:
    """Whether all that runs there ran before, or was started by what did."""
    table = ProcessTable.read()
    rest = [process for process in table.of(first) if process.number != first]
    known = {process.number for process in rest if process.started < began} | ours
    return all(_descends(process, known, table) for process in rest)


def _kill(process: ProcessUsage) -> None:
    """Kill a process of the table, and never another one that has its number by now."""
    with contextlib.suppress(OSError):
        there = os.pidfd_open(process.number)
        try:
            again = read(process.number)
            if again is not None and again.started == process.started:
                signal.pidfd_send_signal(there, signal.SIGKILL)
        finally:
            os.close(there)


def _descends(process: ProcessUsage, known: AbstractSet[int], table: ProcessTable) -> bool:
    """Whether a process is one of ``known``, or descends from one."""
    there: ProcessUsage | None = process
    while there is not None:
        if there.number in known:
            return True
        there = table.processes.get(there.parent)
    return False
