"""Watches what running commands use, all processes of each together, and kills those that use more than they may.

The kernel's own limits bind one process at a time; where batchd has a cgroup of its own, that binds them
together too, and only time and disk are left to watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field

from batchd.records import SandboxPolicy
from batchd.sandbox.child import Child
from batchd.sandbox.disk import Disk
from batchd.sandbox.memory import memory_file
from batchd.sandbox.processes import Process, Table, memory, nameless
from batchd.sandbox.quantities import amount

#: A command is first looked at when it is so old; most end before that (seconds).
_FIRST_S = 0.25
#: The pause between two looks, and where one of the limits is near.
_PAUSE_S, _SHORT_PAUSE_S = 0.5, 0.1
_NEAR = 0.5
#: A pause is so many times as long as the processor time of the look before it, up to the longest (seconds).
_REST, _LONGEST_PAUSE_S = 30, 3.0
#: bwrap itself, outside and inside.
_OURS = 2


@dataclass(slots=True, eq=False)
class Watch:
    """One running command."""

    policy: SandboxPolicy
    child: Child
    disk: Disk
    #: By the monotonic clock.
    began: float
    #: Which limit it has passed, and by what; it is killed then.
    excess: str = ""
    #: The processor time of its processes at the last look, by number and start (seconds).
    times: dict[tuple[int, int], float] = field(default_factory=dict)
    #: … and of those that are gone since.
    gone_s: float = 0.0

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

    watch: Watch
    processes: Sequence[Process]
    #: Of the limit that it has used up most of.
    share: float
    #: Which limit it has passed, and by what.
    excess: str


class Watcher:
    """Watches the commands of one process. To be used on its loop."""

    def __init__(self, policy: SandboxPolicy) -> None:
        self._policy = policy
        self._watched: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def watching(self, child: Child, disk: Disk) -> Iterator[Watch]:
        """Watch a command as long as it runs."""
        watch = Watch(self._policy, child, disk, time.monotonic())
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
                weights, cost_s = await asyncio.to_thread(self._weighed, old)
                usual_s = _SHORT_PAUSE_S if self._judged(weights) else _PAUSE_S
                pause_s = max(usual_s, min(_REST * cost_s, _LONGEST_PAUSE_S))
        if self._watched:
            self._arm(pause_s)

    def _weighed(self, watches: Sequence[Watch]) -> tuple[list[_Weight], float]:
        """Find out what commands use, and what that cost in processor time.

        In a thread of its own: a process may keep us waiting.
        """
        began = time.thread_time()
        # What a cgroup counts need not be looked up.
        unknown = any(watch.child.group is None or watch.disk.due for watch in watches)
        table = Table.read() if unknown else Table()
        weights = []
        for watch in watches:
            processes = table.of(watch.child.pid)
            share, excess = self._excess(watch, processes)
            weights.append(_Weight(watch, processes, share, excess))
        return weights, time.thread_time() - began

    def _judged(self, weights: Sequence[_Weight]) -> bool:
        """Kill what uses too much; return whether any other comes near to it."""
        for weight in weights:
            if weight.excess:
                self._end(weight.watch, weight.excess)
            elif weight.watch.disk.due and not weight.watch.disk.over:
                self._spawn(self._look_at_disk(weight.watch, weight.processes))
        return any(weight.share > _NEAR and not weight.excess for weight in weights)

    async def _look_at_disk(self, watch: Watch, processes: Sequence[Process]) -> None:
        with contextlib.suppress(OSError):
            if excess := await watch.disk.look(processes):
                self._end(watch, excess)

    def _end(self, watch: Watch, excess: str) -> None:
        # One that has ended is not waited for yet as long as it is watched: its number is still its own.
        if watch in self._watched and not watch.excess:
            watch.excess = excess
            watch.child.kill()

    def _excess(self, watch: Watch, processes: Sequence[Process]) -> tuple[float, str]:
        """Return how much of a limit a command has used up, at the most, and which one it has passed."""
        policy = self._policy
        cpu_s = _time(watch, processes)
        if 0 < policy.max_cpu_s < cpu_s:
            return 1.0, (
                f"its processes took {cpu_s:,.0f} s of processor time together;"
                f" [sandbox] max_cpu_s allows {policy.max_cpu_s:,g} s"
            )
        if watch.child.group is not None:
            return 0.0, ""
        count = sum(process.threads for process in processes) - _OURS
        if count > policy.max_processes:
            return 1.0, (
                f"it had {count:,} processes and threads at a time;"
                f" [sandbox] max_processes allows {policy.max_processes:,}"
            )
        used = _memory(processes, policy.max_memory_bytes)
        if used > policy.max_memory_bytes:
            return 1.0, too_much_memory(policy, used)
        return max(used / policy.max_memory_bytes, count / policy.max_processes), ""


def too_much_memory(policy: SandboxPolicy, used: int = 0) -> str:
    """Say that a command's processes took more memory than they may."""
    took = f"used {amount(used)} of memory together" if used else "ran out of memory together"
    return (
        f"its processes {took}; [sandbox] max_memory_bytes allows {amount(policy.max_memory_bytes)}"
    )


def _time(watch: Watch, processes: Sequence[Process]) -> float:
    """Return the processor time of a command so far, in seconds."""
    group = watch.child.group
    if group is not None:
        return group.cpu_s()
    now = {(process.number, process.started): process.cpu_s for process in processes}
    watch.gone_s += sum(spent for key, spent in watch.times.items() if key not in now)
    watch.times = now
    seen = watch.gone_s + sum(now.values())
    # Who lived between two looks is known by who has waited for him; who was waited for by nobody, by the looks.
    told = sum(process.cpu_s + process.children_s for process in processes)
    return max(seen, told)


def _memory(processes: Sequence[Process], limit: int) -> int:
    """Return the memory of processes together in bytes: quickly, and too much, where that is below the limit all the same."""
    device = _memory_device()
    files = nameless(processes, (device,))[device]
    quick = sum(process.resident for process in processes) + files
    return quick if quick <= limit else memory(processes, files)


@functools.cache
def _memory_device() -> int:
    """Return the device of files in memory."""
    descriptor = memory_file(b"")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
