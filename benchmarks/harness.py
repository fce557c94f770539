"""What the benchmarks share: a stand-in server, a real daemon on a fresh spool, and what both cost.

Each is a process of its own. CPU and memory are read from /proc: of the daemon and all that
descends from it, commands in sandboxes apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import Cost

# The stand-in is that of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
import standin

TICKS = os.sysconf("SC_CLK_TCK")

#: The pool is its last section.
CONFIG = """\
[agent]
model = "bench/{model}"
[providers.bench]
base_url = "{base_url}"
max_concurrent = 1000
tools = "native"
[evaluation]
by = "none"
[cost]
compare = []
[log]
level = "warning"
[pool]
processes = {processes}
agents_per_process = {agents}
"""


#: For who measures calls alone:
#: a report is made by a program of its own, and what others do has none.
NO_REPORT = "[report]\nenabled = false\n"


class Server:
    """The stand-in model server as a process."""

    def __init__(self, *options: str) -> None:
        self.process, self.base_url = standin.start("--no-count", *options)

    def get(self, path: str) -> Any:
        """Return what the server says at ``path``."""
        with urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}{path}") as answer:
            return json.load(answer)

    def reset(self) -> None:
        """Have the server forget what was."""
        url = f"{self.base_url.removesuffix('/v1')}/control"
        urllib.request.urlopen(url, data=b'{"reset": true}').close()


class Daemon:
    """``batchd serve`` on a fresh spool."""

    def __init__(self, spool: Path, config: str) -> None:
        self.spool = spool
        (spool / "config.toml").write_text(config)
        command = [sys.executable, "-m", "batchd", "--config", str(spool / "config.toml"), "serve"]
        self._log = (spool / "log").open("w")
        #: When it was started, in seconds since the epoch.
        self.begun = time.time()
        self.process = subprocess.Popen(command, stderr=self._log)
        deadline = time.monotonic() + 60
        while not (spool / ".batchd" / "control.sock").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((spool / "log").read_text())
            time.sleep(0.02)

    def drop(self, name: str, tasks: list[dict[str, Any]]) -> float:
        """Drop a file into the inbox, as a user would, and return when."""
        made = self.spool / f"{name}.new"
        made.write_text(json.dumps({"tasks": tasks}))
        now = time.time()
        made.rename(self.spool / "inbox" / f"{name}.json")
        return now

    def summary(self, name: str, timeout_s: float = 300) -> dict[str, Any]:
        """Wait for a batch's summary and return it."""
        path = self.spool / "outbox" / name / "summary.json"
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} did not end:\n{(self.spool / 'log').read_text()[-3000:]}")
            time.sleep(0.002)
        value: dict[str, Any] = json.loads(path.read_text())
        return value

    def run(self, name: str, count: int, timeout_s: float = 300) -> float:
        """Run ``count`` tasks and return the seconds from the drop to the summary;
        all must complete.
        """
        begun = self.drop(name, [{"dir": "", "first_prompt": f"task {i}"} for i in range(count)])
        summary = self.summary(name, timeout_s)
        took = time.time() - begun
        if summary["counts"]["completed"] != count:
            raise SystemExit(
                f"{name}: {summary['counts']}\n{(self.spool / 'log').read_text()[-2000:]}"
            )
        return took

    def cost(self, name: str, tasks: int, calls: int) -> Cost:
        """Run a batch of so many tasks, each of so many calls, and return what a call took."""
        own, whole = self.cpu_s(), self.whole_cpu_s()
        seconds = self.run(name, tasks)
        made = tasks * calls / 1000
        return Cost((self.cpu_s() - own) / made, (self.whole_cpu_s() - whole) / made, seconds)

    def processes(self) -> list[int]:
        """Return the daemon and what descends from it, commands in sandboxes apart."""
        return tree(self.process.pid, _ours)

    def youngest_worker(self) -> int:
        """Return the worker that was started last: as its server, it has that one's words."""
        return max(pid for pid in self.processes() if "forkserver" in str(_words(pid)))

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far by daemon,
        workers and fork server, waited-for children apart.
        """
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(stat[11]) + int(stat[12])
        return total / TICKS

    def threads_cpu_s(self) -> float:
        """Return the CPU seconds that the threads of daemon, workers and fork server have run.

        By the scheduler's own count, in nanoseconds: what ``cpu_s`` reads is whole ticks of 10 ms,
        two figures a process. Threads that have ended are left out.
        """
        total = 0
        for pid in self.processes():
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(thread.read_text().split()[0])
        return total / 1e9

    def whole_cpu_s(self) -> float:
        """Return ``cpu_s`` with all that these have started and waited for:
        sandboxes, what ran in them, and programs of ours.
        """
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, stat[11:15]))
        return total / TICKS

    def io_bytes(self) -> tuple[int, int, int]:
        """Return what the daemon itself has read and written so far,
        and what of that went to a disk, in bytes.

        It reads what workers say, and writes what it answers, its journal and its log.
        """
        lines = Path(f"/proc/{self.process.pid}/io").read_text().splitlines()
        found = {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}
        return found["rchar"], found["wchar"], found["write_bytes"]

    def pss_mb(self) -> float:
        """Return the proportional memory of daemon, workers and fork server in MB."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total / 1024

    def peak_mb(self) -> float:
        """Return the most resident memory that the daemon's own process had, in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0.0


def tree(pid: int, counts: Callable[[int], bool] = lambda _: True) -> list[int]:
    """Return a process and all below it, as far as they count,
    without what is below one that does not.
    """
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += filter(counts, below.get(each, ()))
    return found


def _ours(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"python" in _words(pid)[0] or _is_guard(pid)
    return False


def _is_guard(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return any(word.startswith(b"\ntrap") for word in _words(pid))
    return False


def _words(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@contextlib.contextmanager
def stage(
    model: str,
    *,
    processes: int = 4,
    agents: int = 1,
    server: tuple[str, ...] = (),
    extra: str = "",
    prepare: Callable[[Path], None] | None = None,
    before: Callable[[str], contextlib.AbstractContextManager[str]] = contextlib.nullcontext,
) -> Iterator[tuple[Server, Daemon]]:
    """Start a server and a daemon that uses it; both end with the block.

    ``prepare`` gets the spool first. ``before``: stands before the server,
    whose address it gets, and gives its own.
    """
    with tempfile.TemporaryDirectory(prefix="batchd-bench-") as folder:
        Path(folder).chmod(0o755)  # sandboxed commands run as somebody else
        standin = Server(*server)
        daemon = None
        try:
            if prepare:
                prepare(Path(folder))
            with before(standin.base_url) as base_url:
                config = CONFIG.format(
                    model=model, base_url=base_url, processes=processes, agents=agents
                )
                daemon = Daemon(Path(folder), config + extra)
                yield standin, daemon
        finally:
            for process in (daemon and daemon.process, standin.process):
                if process:
                    process.send_signal(signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)
                    process.kill()


def row(what: str, value: str, bound: str, *, held: bool) -> None:
    """Print one line of the table."""
    print(f"{what:<58} {value:>16}   {bound:<22} {'held' if held else 'MISSED'}")
