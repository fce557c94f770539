"""The watch of running commands, all processes of each together:
kills those that use more than they may.

The kernel's own limits bind one process at a time; where batchd has a cgroup of its own, that binds
them together too, and only time and disk are left to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from batchd.records import SandboxPolicy
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.kernel_memory import KernelMemory, KernelMemoryWatch
from batchd.sandbox.memory_usage import MemoryUsage
from batchd.sandbox.process_table import ProcessTable, ProcessUsage
from batchd.sandbox.quantities import amount

#: A command is first looked at when it is so old; most end before that (seconds).
_FIRST_S = 0.25
#: The pause between two looks, and where one of the limits is near.
_PAUSE_S, _SHORT_PAUSE_S = 0.5, 0.1
_NEAR_LIMIT_SHARE = 0.5
#: A pause is so many times as long as the processor time
#: of the look before it, up to the longest (seconds).
_REST, _LONGEST_PAUSE_S = 30, 3.0
#: bwrap itself, outside and inside.
_OURS = 2


@dataclass(slots=True, eq=False)
class WatchedCommand:
    """One running command."""

    policy: SandboxPolicy
    child: ChildProcess
    disk: DiskUsage
    #: By the monotonic clock.
    began: float
    #: Which limit it has passed, and by what; it is killed then.
    excess: str = ""
    #: The processor time of its processes at the last look, by number and start (seconds).
    times: dict[tuple[int, int], float] = field(default_factory=dict)
    #: … and of those that are gone since.
    gone_s: float = 0.0
    #: Looks at what the kernel keeps for it, from the first look on;
    #: without a sandbox, nothing does.
    window: KernelMemoryWatch | None = None
    #: Processes that have entered its sandbox: they descend from none of it.
    entered: tuple[int, ...] = ()
    #: The processor time of its processes at the last whole look,
    #: by number, and what it was found to use then.
    seen: Mapping[int, float] = field(default_factory=dict)
    share: float = 0.0
    #: Those of ours that read there what no command waits for: they do not count.
    ours: frozenset[int] = frozenset()
    entering: asyncio.Task[None] | None = None

    def used(self, processes: Sequence[ProcessUsage]) -> MemoryUsage:
        """Find out what memory it uses. In any thread."""
        first = self.child.first
        if self.window is None and first is not None:
            self.window = KernelMemoryWatch(first, own_tmp=self.disk.tmp_in_memory)
        beside = self.window.look(self.child.parent) if self.window else KernelMemory()
        return MemoryUsage.by(processes, beside, self.policy.max_memory_bytes)

    def ended(self) -> str:
        """Return which limit it has passed, and by what; the kernel may have killed it too."""
        group = self.child.group
        with contextlib.suppress(OSError):
            if group is not None and not self.excess and group.ran_out():
                self.excess = too_much_memory(self.policy)
        return self.excess


@dataclass(frozen=True, slots=True)
class _Weight:
    """What a command uses."""

    watch: WatchedCommand
    processes: Sequence[ProcessUsage]
    #: Of the limit that it has used up most of.
    share: float
    #: Which limit it has passed, and by what.
    excess: str
    #: Whether its sockets may hold more than is left of its memory, and are to be looked into.
    enter: bool = False


class CommandWatcher:
    """The watcher of one process's commands. To be used on its loop."""

    def __init__(self, policy: SandboxPolicy) -> None:
        self._policy = policy
        self._watched: set[WatchedCommand] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks: set[asyncio.Task[None]] = set()
        #: Those that a thread is looking at.
        self._weighing: Sequence[WatchedCommand] = ()

    @contextlib.asynccontextmanager
    async def watching(self, child: ChildProcess, disk: DiskUsage) -> AsyncIterator[WatchedCommand]:
        """Watch a command as long as it runs."""
        watch = WatchedCommand(self._policy, child, disk, time.monotonic())
        self._watched.add(watch)
        self._arm(_FIRST_S)
        if disk.due and not disk.over:
            self._spawn(self._look_at_disk(watch, ()))
        try:
            yield watch
        finally:
            self._watched.discard(watch)
            if not self._watched and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if watch.window is not None and watch not in self._weighing:
                watch.window.close()
            if watch.entering is not None:
                watch.entering.cancel()
                await asyncio.gather(watch.entering, return_exceptions=True)

    def _arm(self, seconds: float) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._now_due)

    def _now_due(self) -> None:
        self._timer = None
        self._spawn(self._look())

    def _spawn(self, look: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(look)
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look(self) -> None:
        """Look at all that are old enough, once for all."""
        now = time.monotonic()
        old = [watch for watch in self._watched if now - watch.began >= _FIRST_S / 2]
        pause_s = _FIRST_S
        # Where descriptors run out, the next look may have some.
        with contextlib.suppress(OSError):
            if old:
                self._weighing = old
                try:
                    weights, cost_s = await asyncio.to_thread(self._weighed, old)
                finally:
                    self._weighing = ()
                    for watch in old:
                        if watch.window is not None and watch not in self._watched:
                            watch.window.close()
                usual_s = _SHORT_PAUSE_S if self._judged(weights) else _PAUSE_S
                pause_s = max(usual_s, min(_REST * cost_s, _LONGEST_PAUSE_S))
        if self._watched:
            self._arm(pause_s)

    def _weighed(self, watches: Sequence[WatchedCommand]) -> tuple[list[_Weight], float]:
        """Find out what commands use, and what that cost in processor time.

        In a thread of its own: a process may keep us waiting.
        """
        began = time.thread_time()
        # What a cgroup counts need not be looked up.
        unknown = any(watch.child.group is None or watch.disk.due for watch in watches)
        table = ProcessTable.read() if unknown else ProcessTable()
        weights = []
        for watch in watches:
            processes = table.of(watch.child.pid, *watch.entered)
            times = {process.number: process.cpu_s for process in processes}
            still = times == watch.seen and watch.child.group is None
            if still and watch.share <= _NEAR_LIMIT_SHARE:
                # What has not run since then has the memory that it had.
                weights.append(_Weight(watch, processes, watch.share, ""))
                continue
            weights.append(self._weight(watch, processes))
            watch.seen, watch.share = times, weights[-1].share
        return weights, time.thread_time() - began

    def _judged(self, weights: Sequence[_Weight]) -> bool:
        """Kill what uses too much; return whether any other comes near to it."""
        for weight in weights:
            if weight.excess:
                self._end(weight.watch, weight.excess)
            elif weight.watch.disk.due and not weight.watch.disk.over:
                self._spawn(self._look_at_disk(weight.watch, weight.processes))
            if weight.enter:
                self._enter(weight.watch)
        return any(weight.share > _NEAR_LIMIT_SHARE and not weight.excess for weight in weights)

    async def _look_at_disk(self, watch: WatchedCommand, processes: Sequence[ProcessUsage]) -> None:
        with contextlib.suppress(OSError):
            if excess := await watch.disk.look(processes):
                self._end(watch, excess)

    def _enter(self, watch: WatchedCommand) -> None:
        """Look into a command's sockets from now on."""
        entering = watch.entering is not None and not watch.entering.done()
        if watch in self._watched and watch.window is not None and not entering:
            watch.entering = asyncio.get_running_loop().create_task(watch.window.enter())

    def _end(self, watch: WatchedCommand, excess: str) -> None:
        # One that has ended is not waited for yet as long as it is watched:
        # its number is still its own.
        if watch in self._watched and not watch.excess:
            watch.excess = excess
            watch.child.kill()

    def _weight(self, watch: WatchedCommand, processes: Sequence[ProcessUsage]) -> _Weight:
        """Return how much of its limits a command has used up, and which one it has passed."""
        policy = self._policy

        def passed(excess: str) -> _Weight:
            return _Weight(watch, processes, 1.0, excess)

        cpu_s = _time(watch, processes)
        if 0 < policy.max_cpu_s < cpu_s:
            return passed(
                f"its processes took {cpu_s:,.0f} s of processor time together;"
                f" [sandbox] max_cpu_s allows {policy.max_cpu_s:,g} s"
            )
        if watch.child.group is not None:
            return _Weight(watch, processes, 0.0, "")
        count = sum(process.threads for process in processes if not _of_ours(watch, process))
        count -= _OURS - bool(watch.ours)
        if count > policy.max_processes:
            return passed(
                f"it had {count:,} processes and threads at a time;"
                f" [sandbox] max_processes allows {policy.max_processes:,}"
            )
        limit = policy.max_memory_bytes
        used = watch.used(processes)
        if used.total > limit and (again := watch.used(processes)).total > limit:
            # What ended meanwhile was counted at one of two moments.
            return passed(too_much_memory(policy, min(used, again, key=lambda one: one.total)))
        share = max(used.total / limit, count / policy.max_processes)
        unknown = watch.window is not None and watch.window.due
        enter = unknown and used.total + used.beside.unseen > limit
        return _Weight(watch, processes, 1.0 if enter else share, "", enter=enter)


def _of_ours(watch: WatchedCommand, process: ProcessUsage) -> bool:
    return process.number in watch.ours or process.parent in watch.ours


def too_much_memory(policy: SandboxPolicy, used: MemoryUsage | None = None) -> str:
    """Say that a command's processes took more memory than they may."""
    limit = policy.max_memory_bytes
    if used is None:
        took = "ran out of memory together"
    else:
        took = f"used {amount(used.total)} of memory together{used.mostly(limit // 8)}"
    return f"its processes {took}; [sandbox] max_memory_bytes allows {amount(limit)}"


def _time(watch: WatchedCommand, processes: Sequence[ProcessUsage]) -> float:
    """Return the processor time of a command so far, in seconds."""
    group = watch.child.group
    if group is not None:
        return group.cpu_s()
    now = {(process.number, process.started): process.cpu_s for process in processes}
    watch.gone_s += sum(spent for key, spent in watch.times.items() if key not in now)
    watch.times = now
    seen = watch.gone_s + sum(now.values())
    # A process that lived between two looks is counted in the parent that has waited for it;
    # one not waited for, by the looks.
    counted = sum(process.cpu_s + process.children_s for process in processes)
    return max(seen, counted)
