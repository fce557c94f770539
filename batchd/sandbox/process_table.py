"""Processes, as /proc shows them: who descends from whom, their time, what they have open;
and the killing of one command among others.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import stat
import time
from collections.abc import Iterable, Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from batchd import trees
from batchd.sandbox.command_user import as_root

_PAGE = resource.getpagesize()
#: Of the kernel's clock in a second, by which processes have their times.
TICKS = os.sysconf("SC_CLK_TCK")
#: A killed process is dead, and waited for, within so many looks,
#: with a pause before each (seconds).
LOOKS, PAUSE_S = 20, 0.05
#: What the kernel calls files in memory that are mapped.
_MEMORY = ("/memfd:", "/dev/zero", "/SYSV")
# What the kernel needs for one, measured, in bytes. Of a pipe: the two pages that each has where
# its user has many; of a terminal: what both sides may have written and not read;
# of a mapping: what describes it.
_DESCRIPTOR, _PIPE, _TERMINAL, _MAPPING, _FILE = 512, 9 << 10, 64 << 10, 256, 1 << 10
#: What opens new terminals, and is their one end.
_PTMX = os.makedev(5, 2)


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
    #: Resident memory in bytes; what is shared counts for each.
    resident: int
    #: Processor time in seconds.
    cpu_s: float
    #: … of the children that it has waited for.
    children_s: float

    def memory(self) -> tuple[int, int]:
        """Return its part of memory without a file, and of memory with one, in bytes.

        Shared pages count once; those of files on a disk do not: the kernel can have them again.
        It takes a moment for each gigabyte.
        """
        try:
            lines = Path(f"/proc/{self.number}/smaps_rollup").read_bytes().splitlines()
        except (ProcessLookupError, FileNotFoundError):
            return 0, 0
        except OSError:
            return self.resident, 0
        words = (line.split() for line in lines)
        sizes = {name: int(size) * 1024 for name, size, *kb in words if kb == [b"kB"]}
        own = sizes.get(b"Pss_Anon:", 0) + sizes.get(b"SwapPss:", 0)
        return own, sizes.get(b"Pss_Shmem:", 0)


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
    with trees.held(descriptor), contextlib.suppress(ProcessLookupError):
        return [int(word) for word in os.read(descriptor, 1 << 20).split()]
    return []


def named(number: int) -> str:
    """Return a process's name, with the number that it has inside; empty: it has ended."""
    try:
        name = Path(f"/proc/{number}/comm").read_text(errors="ignore").strip()
        status = Path(f"/proc/{number}/status").read_text(errors="replace")
    except OSError:
        return ""
    # Its numbers, from the outside to the inside.
    inside = status.partition("\nNSpid:")[2].partition("\n")[0].split()
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"{shown} (pid {inside[-1]})" if inside else shown


def read(number: int) -> ProcessUsage | None:
    """Look at one; None: it is gone."""
    try:
        with trees.held(os.open(f"/proc/{number}/stat", os.O_RDONLY | os.O_CLOEXEC)) as file:
            data = os.read(file, 4096)
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
        resident=int(words[21]) * _PAGE,
        cpu_s=sum(map(int, words[11:13])) / TICKS,
        children_s=sum(map(int, words[13:15])) / TICKS,
    )


@dataclass(slots=True)
class OpenFiles:
    """What processes have open and mapped, together."""

    #: What files without a name take, in bytes, by device and number:
    #: deleted ones, and files in memory.
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    #: … and how much of them is mapped, at least, where the kernel does not show more.
    mapped: dict[tuple[int, int], int] = field(default_factory=dict)
    #: The memory that the kernel needs for it, in bytes; what sockets hold apart.
    kernel: int = 0
    _pipes: set[int] = field(default_factory=set)

    @classmethod
    def by(cls, processes: Iterable[ProcessUsage], enough: float = math.inf) -> OpenFiles:
        """Look at what these have, until the kernel needs more than ``enough`` for it."""
        found = cls()
        for process in processes:
            if found.kernel > enough:
                break
            folder = Path("/proc", str(process.number))
            for look in (found._opened, found._mapped, found._tabled):
                with contextlib.suppress(OSError):
                    look(folder)
        return found

    def nameless(self, devices: Iterable[int]) -> int:
        """Return what files without a name take on some devices, in bytes.

        What is mapped alone the kernel shows to root.
        To others it shows how much of a file on a disk is mapped, at least.
        """
        there = {*devices}
        return sum(s for (device, _), s in (self.mapped | self.sizes).items() if device in there)

    def _opened(self, folder: Path) -> None:
        names = os.listdir(folder / "fd")
        self.kernel += len(names) * _DESCRIPTOR
        for name in names:
            with contextlib.suppress(OSError):
                status = os.stat(f"{folder}/fd/{name}")
                self.kernel += (status.st_rdev == _PTMX) * _TERMINAL
                if stat.S_ISFIFO(status.st_mode) and status.st_ino not in self._pipes:
                    self._pipes.add(status.st_ino)
                    self.kernel += _PIPE
                self._add(status)

    def _mapped(self, folder: Path) -> None:
        lines = (folder / "maps").read_bytes().split(b"\n")
        self.kernel += len(lines) * _MAPPING
        for line in lines:
            if not line.endswith(b" (deleted)"):
                continue
            words = line.decode(errors="replace").split(maxsplit=5)
            place, _, offset, device, number, name = words
            if as_root():
                with contextlib.suppress(OSError):
                    self._add((folder / "map_files" / place).stat())
            # Of memory much may be reserved that is never taken:
            # where its pages are not shown, it does not count.
            elif not name.startswith(_MEMORY):
                begin, end = (int(bound, 16) for bound in place.split("-"))
                major, minor = (int(half, 16) for half in device.split(":"))
                file, last = (os.makedev(major, minor), int(number)), int(offset, 16) + end - begin
                self.mapped[file] = max(last, self.mapped.get(file, 0))

    def _tabled(self, folder: Path) -> None:
        _, _, rest = (folder / "status").read_bytes().partition(b"\nVmPTE:")
        self.kernel += int(rest.split(maxsplit=1)[0]) * 1024 if rest else 0

    def _add(self, status: os.stat_result) -> None:
        file = status.st_dev, status.st_ino
        if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and file not in self.sizes:
            self.sizes[file] = status.st_blocks * 512
            self.kernel += _FILE


def killed(command: int, first: int) -> bool:
    """Kill a command that has entered the sandbox of ``first``;
    return whether nothing is left that may be of it.

    The command must not be waited for yet. Blocks for a moment.
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
        if _nothing_since(its.started, first):
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


def _nothing_since(began: int, first: int) -> bool:
    """Whether all that runs there ran before, or was started by what did."""
    table = ProcessTable.read()
    rest = [process for process in table.of(first) if process.number != first]
    known = {process.number for process in rest if process.started < began}
    return all(_descends(process, known, table) for process in rest)


def _kill(process: ProcessUsage) -> None:
    """Kill a process of the table, and never another one that has its number by now."""
    with contextlib.suppress(OSError), trees.held(os.pidfd_open(process.number)) as there:
        again = read(process.number)
        if again is not None and again.started == process.started:
            signal.pidfd_send_signal(there, signal.SIGKILL)


def _descends(process: ProcessUsage, known: AbstractSet[int], table: ProcessTable) -> bool:
    """Whether a process is one of ``known``, or descends from one."""
    there: ProcessUsage | None = process
    while there is not None:
        if there.number in known:
            return True
        there = table.processes.get(there.parent)
    return False
