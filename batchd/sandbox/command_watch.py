"""The watch of running commands, all processes of each together:
kills those that use more than they may.

The kernel's own limits bind one process at a time; where batchd has a cgroup of its own, that binds
them together too, and only time and disk are left to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from batchd.sandbox.child import ChildProcess
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.entrance import Entrance
from batchd.sandbox.memory_files import memory_device
from batchd.sandbox.process_table import (
    TICKS,
    OpenFiles,
    ProcessTable,
    ProcessUsage,
    left_by,
    read,
)
from batchd.words import amount

#: A command is first looked at when it is so old; most end before that (seconds).
_FIRST_S = 0.25
#: The pause between two looks, and where one of the limits is near.
_PAUSE_S, _SHORT_PAUSE_S = 0.5, 0.1
_NEAR_LIMIT_SHARE = 0.5
#: A pause is so many times as long as the processor time
#: of the look before it, up to the longest (seconds).
_REST, _LONGEST_PAUSE_S = 30, 3.0
#: What a socket counts for, whatever waits in it, and a file in memory beside its contents (bytes).
_SOCKET, _NAME = 256 << 10, 1 << 10
#: What a command that begins on a full disk may add to it by folders and names (bytes).
_SLACK = 1 << 20


@dataclass(slots=True, eq=False)
class WatchedSandbox:
    """A sandbox in which something runs, or a command without one."""

    child: Entrance | ChildProcess
    disk: DiskUsage
    #: Processes of ours that hold it, and start and adopt what runs there.
    frame: AbstractSet[int] = field(init=False)
    #: When the last command began, by the monotonic clock.
    began: float = 0.0
    #: Which limit it has passed, and by what; it is killed then.
    excess: str = ""
    #: Whether its commands have ended, and only what they left may run there.
    idle: bool = False
    #: What its task may have on the disk where a command began on a full one (bytes).
    room: int = 0
    #: When the last command began, as the kernel counts; 0: all that runs there is its own.
    since: float = 0.0
    #: The processor time of its processes at the last look, by number and start (seconds).
    times: dict[tuple[int, int], float] = field(default_factory=dict)
    #: … of those that are gone since; and of what was there before the last command, each with
    #: that of its children.
    gone_s: float = 0.0
    before: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frame = self.child.frame

    def begin(self) -> None:
        """Begin to count, for a command that begins. Raises ``OSError``."""
        first, self.began = not self.began, time.monotonic()
        self.times, self.gone_s, self.before = {}, 0.0, {}
        self.idle = False
        self.room = self.disk.used + _SLACK if self.disk.over else 0
        if self.child.group is not None:
            self.child.group.begin()
        elif self.frame and not first:
            self.since = time.clock_gettime(time.CLOCK_BOOTTIME) * TICKS
            self._cpu_s([its for number in self.frame if (its := read(number))])

    def left(self) -> list[int]:
        """Return what commands have left running there. Raises ``OSError``."""
        return [number for number in left_by(self.child.first) if number not in self.frame]

    def ended(self) -> str:
        """Return which limit it has passed, and by what; the kernel may have killed it too."""
        group = self.child.group
        with contextlib.suppress(OSError):
            if group is not None and not self.excess and group.ran_out():
                self.excess = self._too_much("ran out of memory together")
        return self.excess

    def weighed(self, processes: Sequence[ProcessUsage]) -> tuple[float, str]:
        """Return the share of a limit that it has used up, and which one it has passed.

        In any thread.
        """
        policy, limit = self.disk.policy, self.disk.policy.max_memory_bytes
        cpu_s = self._cpu_s(processes)
        if 0 < policy.max_cpu_s < cpu_s:
            return 1.0, (
                f"its processes took {cpu_s:,.0f} s of processor time together;"
                f" [sandbox] max_cpu_s allows {policy.max_cpu_s:,g} s"
            )
        if self.child.group is not None:
            return 0.0, ""
        processes = [process for process in processes if process.number not in self.frame]
        # What reads there what no command waits for does not count.
        there = (p for p in processes if self.child.drains.isdisjoint((p.number, p.parent)))
        count = sum(process.threads for process in there)
        if count > policy.max_processes:
            return 1.0, (
                f"it had {count:,} processes and threads at a time;"
                f" [sandbox] max_processes allows {policy.max_processes:,}"
            )
        used = self._memory(processes)
        if used[0] > limit:  # what ended meanwhile was counted at one of two moments
            used = min(used, self._memory(processes))
        if used[0] > limit:
            total, files, kernel = map(amount, used)
            where = f"{files} in files in memory, {kernel} for sockets and what is open and mapped"
            more = f" ({where})" if max(used[1:]) >= limit // 8 else ""
            return 1.0, self._too_much(f"used {total} of memory together{more}")
        return max(used[0] / limit, count / policy.max_processes), ""

    def _too_much(self, took: str) -> str:
        limit = amount(self.disk.policy.max_memory_bytes)
        return f"its processes {took}; [sandbox] max_memory_bytes allows {limit}"

    def _cpu_s(self, processes: Sequence[ProcessUsage]) -> float:
        """Return its processor time so far, in seconds."""
        if self.child.group is not None:
            return self.child.group.cpu_s()
        now: dict[tuple[int, int], float] = {}
        counted = 0.0
        for process in processes:
            key, spent = (process.number, process.started), (process.cpu_s, process.children_s)
            own, children = 0.0, 0.0
            if process.started < self.since:
                own, children = self.before.setdefault(key, spent)
            # What holds a sandbox does nothing itself.
            if process.number not in self.frame:
                now[key] = process.cpu_s - own
                counted += now[key]
            counted += process.children_s - children
        self.gone_s += sum(spent for key, spent in self.times.items() if key not in now)
        self.times = now
        # A process that lived between two looks is counted in the parent that has waited for it;
        # one not waited for, by the looks.
        return max(self.gone_s + sum(now.values()), counted)

    def _memory(self, processes: Sequence[ProcessUsage]) -> tuple[int, int, int]:
        """Return its memory in bytes: all of it; in files in memory; what the kernel needs.

        Looks quickly, and at too much, where that is below the limit all the same.
        """
        limit = self.disk.policy.max_memory_bytes
        opened, (files, sockets) = OpenFiles.by(processes, limit), self._beside()
        files, kernel = files + opened.nameless((memory_device(),)), opened.kernel + sockets
        total = files + kernel + sum(process.resident for process in processes)
        if kernel <= limit < total:
            parts = [process.memory() for process in processes]
            total = kernel + sum(own for own, _ in parts)
            total += max(files, sum(shared for _, shared in parts))
        return total, files, kernel

    def _beside(self) -> tuple[int, int]:
        """Return what no process has: its files in memory that have names, and its sockets.

        None of it before the sandbox is made, and once its first process is gone.
        """
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:

            def seen(path: Path | str, within: int | None = None) -> int:
                descriptor = os.open(path, os.O_PATH, dir_fd=within)
                opened.callback(os.close, descriptor)
                return descriptor

            # The number could be another's by now; the descriptor stands for one process.
            there = Path(f"/proc/self/fd/{seen(f'/proc/{self.child.first}')}")
            if int((there / "stat").read_text().rpartition(")")[2].split()[1]) != self.child.pid:
                return 0, 0
            files, sockets, root = 0, "", seen(there / "root")
            # Until bwrap has made its root, its first process sees the machine's own files.
            if not os.path.samestat(os.fstat(root), os.stat("/")):
                for name in ("dev/shm", "tmp") if self.disk.tmp_in_memory else ("dev/shm",):
                    disk = os.fstatvfs(seen(name, root))
                    files += (disk.f_blocks - disk.f_bfree) * disk.f_frsize
                    files += (disk.f_files - disk.f_ffree) * _NAME
            # What shares the machine's network cannot be distinguished from what is not its own.
            if not (there / "ns/net").samefile("/proc/self/ns/net"):
                sockets = (there / "net/sockstat").read_text().partition("sockets: used ")[2]
            return files, int(sockets.partition("\n")[0] or 0) * _SOCKET
        return 0, 0


class CommandWatcher:
    """The watcher of one process's commands. To be used on its loop."""

    def __init__(self) -> None:
        self._watched: set[WatchedSandbox] = set()
        self._looking: asyncio.Task[None] | None = None
        self._disks: set[asyncio.Task[None]] = set()

    def begin(self, watch: WatchedSandbox) -> None:
        """Watch it, for a command that begins, until it is forgotten. Raises ``OSError``."""
        watch.begin()
        self._watched.add(watch)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        self._look_at_disk(watch, ())

    def forget(self, watch: WatchedSandbox) -> None:
        """Watch it no more: nothing runs there."""
        self._watched.discard(watch)
        if not self._watched and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        """Look at all that are old enough, once for all, again and again."""
        pause_s = _FIRST_S
        while True:
            await asyncio.sleep(pause_s)
            now, pause_s = time.monotonic(), _FIRST_S
            old = [watch for watch in self._watched if now - watch.began >= _FIRST_S / 2]
            # Where descriptors or threads run out, the next look may have some.
            with contextlib.suppress(OSError, RuntimeError):
                if old:
                    # In a thread of its own: a process may keep us waiting.
                    weights, cost_s = await asyncio.to_thread(_weighed, old)
                    pause_s = max(self._judged(weights), min(_REST * cost_s, _LONGEST_PAUSE_S))

    def _looked(self, looking: asyncio.Task[None]) -> None:
        """Kill what is watched where a look ends by a bug: no command goes on without limits."""
        if not looking.cancelled() and (error := looking.exception()):
            for watch in self._watched:
                self._end(watch, f"what it uses cannot be found out: {error!r}")

    def _judged(self, weights: Sequence[_Weight]) -> float:
        """Kill what uses too much; return the pause, a short one where any other comes near."""
        for watch, processes, _, excess in weights:
            if excess:
                self._end(watch, excess)
            elif watch.idle and not watch.left():
                self.forget(watch)
            else:
                self._look_at_disk(watch, processes)
        near = any(share > _NEAR_LIMIT_SHARE and not excess for _, _, share, excess in weights)
        return _SHORT_PAUSE_S if near else _PAUSE_S

    def _look_at_disk(self, watch: WatchedSandbox, processes: Sequence[ProcessUsage]) -> None:
        async def look() -> None:
            with contextlib.suppress(OSError):
                if (excess := await watch.disk.look(processes)) and watch.disk.used > watch.room:
                    self._end(watch, excess)

        if watch.disk.due:
            task = asyncio.create_task(look())
            self._disks.add(task)
            task.add_done_callback(self._disks.discard)

    def _end(self, watch: WatchedSandbox, excess: str) -> None:
        # One that has ended is not waited for yet as long as it is watched:
        # its number is still its own.
        if watch in self._watched and not watch.excess:
            watch.excess = excess
            watch.child.kill()


#: What is watched, its processes, the share of a limit that it has used up,
#: and which one it has passed.
_Weight = tuple[WatchedSandbox, Sequence[ProcessUsage], float, str]


def _weighed(watches: Sequence[WatchedSandbox]) -> tuple[list[_Weight], float]:
    """Find out what commands use, and what that cost in processor time."""
    began = time.thread_time()
    # What a cgroup counts need not be looked up.
    unknown = any(watch.child.group is None or watch.disk.due for watch in watches)
    table = ProcessTable.read() if unknown else ProcessTable()
    weights: list[_Weight] = []
    for watch in watches:
        processes = table.of(watch.child.pid, *watch.frame)
        weights.append((watch, processes, *watch.weighed(processes)))
    return weights, time.thread_time() - began
