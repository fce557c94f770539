"""The process table, as /proc shows it: how many processes there are, their memory, their time."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")
# In smaps_rollup. Pages of files are not looked at: the kernel can have them again from the disk.
_OWN = (b"Pss_Anon:", b"SwapPss:")
_SHARED = b"Pss_Shmem:"


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A line of the table."""

    number: int
    #: When it was started, in the kernel's ticks: unique together with the number.
    started: int
    parent: int
    session: int
    #: The kernel counts them as processes.
    threads: int
    #: Addresses that it has taken, in bytes; few of them may stand for memory.
    reserved: int
    #: Resident memory in bytes; what is shared counts for each.
    resident: int
    #: Processor time in seconds.
    cpu_s: float
    #: … of the children that it has waited for.
    children_s: float


@dataclass(slots=True)
class ProcessTable:
    """The process table of the machine, by number, and by parent and session."""

    processes: dict[int, ProcessUsage] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    sessions: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> ProcessTable:
        """Look at all of them; those that end meanwhile are left out."""
        table = cls()
        for name in os.listdir("/proc"):
            if name.isdigit() and (process := read(int(name))):
                table.processes[process.number] = process
                table.children.setdefault(process.parent, []).append(process.number)
                table.sessions.setdefault(process.session, []).append(process.number)
        return table

    def of(self, *firsts: int) -> list[ProcessUsage]:
        """Return the processes of commands: the first ones,
        what descends from them, what shares their sessions.

        In a sandbox nothing can leave these: orphans are adopted by its own first process.
        """
        found: dict[int, ProcessUsage] = {}
        waiting = [number for first in firsts for number in (first, *self.sessions.get(first, ()))]
        while waiting:
            number = waiting.pop()
            if number not in found and (process := self.processes.get(number)):
                found[number] = process
                waiting += self.children.get(number, ())
        return list(found.values())


def left_by(first: int) -> list[int]:
    """Return the children of a sandbox's first process: what commands have left running there."""
    try:
        descriptor = os.open(f"/proc/{first}/task/{first}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # It has ended, or the kernel was built without this list.
        return ProcessTable.read().children.get(first, [])
    try:
        return [int(word) for word in os.read(descriptor, 1 << 20).split()]
    except ProcessLookupError:
        return []
    finally:
        os.close(descriptor)


def named(number: int) -> str:
    """Return a process's name, with the number that it has inside; empty: it has ended."""
    try:
        name = Path(f"/proc/{number}/comm").read_text(errors="ignore").strip()
    except OSError:
        return ""
    inside = _inside(number)
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"{shown} (pid {inside[-1]})" if inside else shown


def _inside(number: int) -> list[str]:
    """Return the numbers of a process, from the outside to the inside; empty: it has ended."""
    try:
        status = Path(f"/proc/{number}/status").read_text(errors="replace")
    except OSError:
        return []
    return status.partition("\nNSpid:")[2].partition("\n")[0].split()


def read(number: int) -> ProcessUsage | None:
    """Look at one; None: it is gone."""
    try:
        descriptor = os.open(f"/proc/{number}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    # The name in brackets may hold anything, brackets too.
    # What follows begins with the third field.
    words = data[data.rindex(b")") + 2 :].split()
    return ProcessUsage(
        number=number,
        started=int(words[19]),
        parent=int(words[1]),
        session=int(words[3]),
        threads=int(words[17]),
        reserved=int(words[20]),
        resident=int(words[21]) * _PAGE,
        cpu_s=sum(map(int, words[11:13])) / _TICKS,
        children_s=sum(map(int, words[13:15])) / _TICKS,
    )


def memory(processes: Iterable[ProcessUsage], files: int) -> int:
    """Return the memory of processes together in bytes:
    shared pages count once, and those of files on a disk do not.

    ``files``: what files in memory take, mapped or not. It takes a moment for each gigabyte.
    """
    private = shared = 0
    for process in processes:
        own, mapped = _rollup(process)
        private += own
        shared += mapped
    return private + max(shared, files)


def _rollup(process: ProcessUsage) -> tuple[int, int]:
    """Return a process's part of memory without a file, and of memory with one, in bytes."""
    try:
        with open(f"/proc/{process.number}/smaps_rollup", "rb") as file:
            lines = [line.split() for line in file]
    except (ProcessLookupError, FileNotFoundError):
        return 0, 0
    except OSError:
        return process.resident, 0
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == b"kB"}
    own = sum(sizes.get(name, 0) for name in _OWN)
    return own, sizes.get(_SHARED, 0)
