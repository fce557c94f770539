"""Control groups, version 2: limits that the kernel holds over all processes of a task together.

Only a group that was given to batchd is touched: one that systemd delegates (``Delegate=yes``), or
that ``[sandbox] cgroup`` names. Below it each task at work has one of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchd import trees
from batchd.errors import SandboxUnavailableError
from batchd.records import SandboxPolicy

#: What there must be; ``cpu`` only where it is asked for.
_CONTROLLERS = ("memory", "pids")
#: How systemd marks a group that it leaves to its unit.
_MARKS = ("user.delegate", "trusted.delegate")
#: Where batchd's own processes go, so that groups for others can be made beside them.
_OWN = "daemon"
_PREFIX = "task-"
#: The share of a processor is counted in periods of so many microseconds.
_PERIOD_US = 100_000
#: bwrap itself, the sandbox's first process, and what starts commands there.
_OURS = 3
_EMPTYING_S = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class DelegatedCgroup:
    """The group that batchd may make others in."""

    path: Path

    def make(self, policy: SandboxPolicy) -> TaskCgroup:
        """Make a group for a task. Raises ``OSError``."""
        path = self.path / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        path.mkdir()
        try:
            for name, value in _settings(policy).items():
                (path / name).write_text(value)
            with contextlib.suppress(FileNotFoundError):  # without swap there is nothing to limit
                (path / "memory.swap.max").write_text("0")
            return TaskCgroup(path)
        except OSError:
            path.rmdir()
            raise


class TaskCgroup:
    """The group of one task, and of all processes of its commands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: The folder, open.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._killed = 0
        self._cpu_s = 0.0

    def begin(self) -> None:
        """Forget what earlier commands used and met. Raises ``OSError``."""
        self._killed = self._count("memory.events", "oom_kill")
        self._cpu_s += self.cpu_s()

    def ran_out(self) -> bool:
        """Return whether the kernel killed for memory since ``begin``. Raises ``OSError``."""
        return self._count("memory.events", "oom_kill") > self._killed

    def cpu_s(self) -> float:
        """Return the processor time since ``begin``, in seconds. Raises ``OSError``."""
        return self._count("cpu.stat", "usage_usec") / 1e6 - self._cpu_s

    def kill(self) -> None:
        """Kill all that is here, at once."""
        with contextlib.suppress(OSError):
            self._write("cgroup.kill", "1")

    def close(self) -> None:
        """Remove it; what still dies in it is waited for, for a moment."""
        self.kill()
        os.close(self.descriptor)
        self.descriptor = -1
        deadline = time.monotonic() + _EMPTYING_S
        while True:
            try:
                self._path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return  # the next start sweeps it away
                time.sleep(0.01)
            else:
                return

    def _write(self, name: str, value: str) -> None:
        with trees.held(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.descriptor)) as file:
            os.write(file, value.encode())

    def _count(self, name: str, key: str) -> int:
        with trees.held(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.descriptor)) as file:
            text = os.read(file, 4096).decode()
        found = re.search(rf"^{key} (\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else 0


def _settings(policy: SandboxPolicy) -> Mapping[str, str]:
    settings = {
        "memory.max": str(policy.max_memory_bytes),
        # One of them killed leaves the rest of a build in a state that is hard to understand.
        "memory.oom.group": "1",
        "pids.max": str(policy.max_processes + _OURS),
    }
    if policy.max_cpus:
        settings["cpu.max"] = f"{round(policy.max_cpus * _PERIOD_US)} {_PERIOD_US}"
    return settings


def delegated(policy: SandboxPolicy) -> DelegatedCgroup | None:
    """Return the group that batchd may use, made ready;
    None where there is none, or none is wanted.

    Where batchd's own processes are in it, they move into one below. Raises
    ``SandboxUnavailableError``, with the fix, for one that ``[sandbox] cgroup`` names
    and that cannot be used, and for none where one is required.
    """
    why = "none is delegated to this process"
    if policy.backend == "none" or policy.cgroup == "none":
        why = f'{"cgroup" if policy.cgroup == "none" else "backend"} is "none"'
    elif policy.cgroup != "auto":
        try:
            return _ready(Path(policy.cgroup), policy)
        except OSError as error:
            raise SandboxUnavailableError(
                f"[sandbox] cgroup: {policy.cgroup} cannot be used ({error.strerror}): make it a group of version 2 that"
                f' batchd may write, with the controllers {" and ".join(_wanted(policy))}, or set "auto"'
            ) from error
    else:
        try:
            if (group := _marked()) is not None:
                return _ready(group, policy)
        except OSError as error:
            why = f"the one that is delegated cannot be used, {error.strerror}"
    if policy.require_cgroup:
        raise SandboxUnavailableError(
            f"[sandbox] require_cgroup: batchd has no cgroup of version 2 for commands ({why}): run it as the"
            " unit that `batchd init --systemd` writes, or name a cgroup of its own in [sandbox] cgroup,"
            " or take require_cgroup out"
        )
    return None


def _ready(group: Path, policy: SandboxPolicy) -> DelegatedCgroup:
    """Prepare a group, and try it. Raises ``OSError``."""
    _make_ready(group, policy)
    ready = DelegatedCgroup(group)
    ready.make(policy).close()
    return ready


def _marked() -> Path | None:
    """Return the group that was delegated to us, which we or our parent's group are.

    Raises ``OSError``.
    """
    own = re.search(r"^0::(/.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    root = re.search(
        r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ",
        Path("/proc/self/mountinfo").read_text(),
        re.MULTILINE,
    )
    if own is None or root is None:
        return None
    here = Path(root[1] + own[1])
    return next((group for group in (here, here.parent) if _is_marked(group)), None)


def _is_marked(group: Path) -> bool:
    for name in _MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _wanted(policy: SandboxPolicy) -> tuple[str, ...]:
    return (*_CONTROLLERS, "cpu") if policy.max_cpus else _CONTROLLERS


def _make_ready(group: Path, policy: SandboxPolicy) -> None:
    """Enable the controllers below a group, and remove what earlier workers left.

    Raises ``OSError``.
    """
    switched = set((group / "cgroup.subtree_control").read_text().split())
    if missing := [name for name in _wanted(policy) if name not in switched]:
        # A group with controllers below it has no processes in itself.
        own = group / _OWN
        for pid in (group / "cgroup.procs").read_text().split():
            own.mkdir(exist_ok=True)
            with contextlib.suppress(ProcessLookupError):
                (own / "cgroup.procs").write_text(pid)
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))
    for left in group.glob(f"{_PREFIX}*"):
        maker = left.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                left.rmdir()
