"""What processes use, as /proc tells it: how many there are, their memory, their time."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batchd.sandbox.identity import as_root

_PAGE = resource.getpagesize()
_TICKS = os.sysconf("SC_CLK_TCK")
# In smaps_rollup. Pages of files are not looked at: the kernel can have them again from the disk.
_OWN = (b"Pss_Anon:", b"SwapPss:")
_SHARED = b"Pss_Shmem:"
#: What the kernel calls files in memory that are mapped.
_MEMORY = ("/memfd:", "/dev/zero", "/SYSV")


@dataclass(frozen=True, slots=True)
class Process:
    """A line of the table."""

    number: int
    #: When it was started, in the kernel's ticks: with the number, nobody else's.
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


@dataclass(slots=True)
class Table:
    """All processes of the machine, by number, and by parent and session."""

    processes: dict[int, Process] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    sessions: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Table:
        """Look at all of them; those that end meanwhile are left out."""
        table = cls()
        for name in os.listdir("/proc"):  # noqa: PTH208 (names are what is wanted)
            if name.isdigit() and (process := _read(name)):
                table.processes[process.number] = process
                table.children.setdefault(process.parent, []).append(process.number)
                table.sessions.setdefault(process.session, []).append(process.number)
        return table

    def of(self, first: int) -> list[Process]:
        """Return a command's processes: the first one, what descends from it, what shares its session.

        In a sandbox nothing can leave these: orphans are adopted by its own first process.
        """
        found: dict[int, Process] = {}
        waiting = [first, *self.sessions.get(first, ())]
        while waiting:
            number = waiting.pop()
            if number not in found and (process := self.processes.get(number)):
                found[number] = process
                waiting += self.children.get(number, ())
        return list(found.values())


def _read(name: str) -> Process | None:
    try:
        descriptor = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    # The name in brackets may hold anything, brackets too. What follows begins with the third field.
    words = data[data.rindex(b")") + 2 :].split()
    return Process(
        number=int(name),
        started=int(words[19]),
        parent=int(words[1]),
        session=int(words[3]),
        threads=int(words[17]),
        resident=int(words[21]) * _PAGE,
        cpu_s=sum(map(int, words[11:13])) / _TICKS,
        children_s=sum(map(int, words[13:15])) / _TICKS,
    )


def memory(processes: Iterable[Process], files: int) -> int:
    """Return the memory of processes together in bytes: shared pages count once, and those of files on a disk do not.

    ``files``: what files in memory take, mapped or not. It takes a moment for each gigabyte.
    """
    private = shared = 0
    for process in processes:
        own, mapped = _rollup(process)
        private += own
        shared += mapped
    return private + max(shared, files)


def _rollup(process: Process) -> tuple[int, int]:
    """Return a process's part of memory without a file, and of memory with one, in bytes."""
    try:
        with open(f"/proc/{process.number}/smaps_rollup", "rb") as file:  # noqa: PTH123 (as quick as can be)
            lines = [line.split() for line in file]
    except (ProcessLookupError, FileNotFoundError):
        return 0, 0
    except OSError:
        return process.resident, 0
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == b"kB"}
    own = sum(sizes.get(name, 0) for name in _OWN)
    return own, sizes.get(_SHARED, 0)


def nameless(processes: Iterable[Process], devices: Iterable[int]) -> Mapping[int, int]:
    """Return what files without a name take, in bytes by device: deleted ones that are open or mapped, and files in memory.

    What is mapped alone the kernel shows to root. Others are told how much of a file on a disk is mapped, at least.
    """
    found = dict.fromkeys(devices, 0)
    sizes: dict[tuple[int, int], int] = {}
    mapped: dict[tuple[int, int], int] = {}
    for process in processes:
        folder = Path("/proc", str(process.number))
        with contextlib.suppress(OSError):
            for path in (folder / "fd").iterdir():
                sizes.update(_nameless(path))
        with contextlib.suppress(OSError):
            for place, file, end in _deleted(folder):
                if as_root():
                    sizes.update(_nameless(folder / "map_files" / place))
                else:
                    mapped[file] = max(end, mapped.get(file, 0))
    for (device, _), size in (mapped | sizes).items():
        if device in found:
            found[device] += size
    return found


def _nameless(path: Path) -> Mapping[tuple[int, int], int]:
    """Return what the file behind a link of /proc takes, by device and number; nothing where it has a name."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
            return {(status.st_dev, status.st_ino): status.st_blocks * 512}
    return {}


def _deleted(folder: Path) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield the mappings of deleted files: their place, device and number of the file, and where in it they end."""
    with (folder / "maps").open("rb") as file:
        for line in file:
            if not line.endswith(b" (deleted)\n"):
                continue
            words = line.decode(errors="replace").split(maxsplit=5)
            place, _, offset, device, number, name = words
            # Of memory much may be reserved that is never taken: where its pages are not shown, it does not count.
            if name.startswith(_MEMORY) and not as_root():
                continue
            begin, end = (int(bound, 16) for bound in place.split("-"))
            major, minor = (int(half, 16) for half in device.split(":"))
            last = int(offset, 16) + end - begin
            yield place, (os.makedev(major, minor), int(number)), last
