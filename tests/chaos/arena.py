"""What a chaos run is made of: a spool, a real daemon,
a model server, each a process; and who is alive.

Nothing here asks batchd how it is: processes are read from /proc, calls from the server's own log.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import patience
import standin
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]

#: Calls each task makes: ``steps`` runs `echo`,
#: ``notes`` leaves a line in the task's directory for every command.
CALLS = 3
MODELS = (f"standin/steps-{CALLS}", f"standin/notes-{CALLS - 1}")

_CONFIG = """\
[agent]
model = "standin/steps-3"
[providers.standin]
base_url = "{base_url}"
max_concurrent = 64
[models."standin/steps-3"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[models."standin/notes-2"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = {processes}
agents_per_process = {agents}
max_attempts = 99
heartbeat_timeout_s = 2.0
drain_s = 5
[evaluation]
by = "none"
[governor]
max_retries = 20
first_backoff_s = 0.1
max_backoff_s = 1.0
"""


class Model:
    """The stand-in model server as a process that can die and come back on its port."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._port = 0
        #: What it was set to, which a new one after its death is set to again.
        self._settings: dict[str, Any] = {}
        #: What servers that were killed had logged, calls that were then under way included.
        self._before: list[dict[str, Any]] = []
        self._repeated = 0
        self.start()

    def start(self) -> None:
        """Start it; after a death, on the port that it had."""
        options = ("--no-count", "--port", str(self._port), *self._options)
        self._process, self.base_url = standin.start(*options)
        self._port = int(self.base_url.rpartition(":")[2].split("/")[0])
        if self._settings:
            self.control(**self._settings)

    def signal(self, number: int) -> None:
        """Send it a signal: to stop, or to go on."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL, its log kept."""
        # What comes from now on gets no answer:
        # else one could be given after the log was asked for.
        self._get("/control", b'{"down": true}')
        self._before, self._repeated = self.log(), self.repeated()
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._end()

    def _end(self) -> None:
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def log(self) -> list[dict[str, Any]]:
        """Return every request, oldest first, by the server's own log."""
        return self._before + self._get("/log")

    def repeated(self) -> int:
        """Return how many answers were delivered to a question that had been answered before."""
        return self._repeated + int(self._get("/totals")["repeated"])

    def control(self, **changes: Any) -> None:
        """Change its settings, for its whole life and those after it."""
        self._settings |= changes
        self._get("/control", json.dumps(changes).encode())

    def _get(self, path: str, body: bytes | None = None) -> Any:
        url = f"{self.base_url.removesuffix('/v1')}{path}"
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return json.load(answer)


@dataclass(frozen=True)
class Process:
    """A process that belongs to a spool."""

    pid: int
    #: Clock ticks since boot: with it, a number that was used again is recognised.
    started: int
    parent: int
    #: ``daemon``, ``forkserver``, ``worker``, or ``other``: sandboxes, their guards and the like.
    role: str
    #: The kernel's letter: ``T`` is stopped, ``Z`` a zombie.
    state: str
    command: str


class Arena:
    """A spool with a daemon on it that may die at any time."""

    def __init__(self, folder: Path, config: str, *, prefix: Sequence[str] = ()) -> None:
        """``prefix`` goes before the daemon's command line: what it is to run under."""
        #: A word that no other process of this machine has anywhere:
        #: what is killed is recognised by it.
        self.mark = f"chaos-{secrets.token_hex(8)}"
        self.folder = folder / self.mark
        self.log = self.folder / "daemon.log"
        self._prefix = prefix
        self._namespace = _namespace(Path("/proc/self"))
        #: A process older than that was not started here.
        self._since = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self.folder.mkdir()
        folder.chmod(0o755)  # commands run as somebody else
        (self.folder / "config.toml").write_text(config)
        (self.folder / "inbox").mkdir()
        self.daemon: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the daemon and its commands are started with:
        its folder comes before Python's own modules.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BATCHD_")}
        path = f"{self.folder}:{ROOT}"
        more = {"CHAOS_MARK": self.mark, "COLUMNS": "80"}
        return {**kept, "PYTHONPATH": path, **more}

    def command(self, *arguments: str) -> list[str]:
        """Return a command line of batchd's in this spool."""
        config = str(self.folder / "config.toml")
        return [sys.executable, "-m", "batchd", "--config", config, *arguments]

    def start(self) -> None:
        """Start a daemon, in a session of its own, and do not wait until it is up.

        Where the lifecycle and the daemon's own classes differ, it ends.
        """
        _, _, _, *words = self.command("serve")
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*self._prefix, sys.executable, str(ROOT / "tests/shadow.py"), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )

    def keep_alive(self) -> None:
        """Start the daemon again where it was killed. It must not have ended in any other way."""
        code = self.daemon.poll() if self.daemon else -signal.SIGKILL
        if code is not None:
            assert code == -signal.SIGKILL, f"the daemon ended with {code}:\n{self.tail()}"
            self.start()

    def stop(self) -> None:
        """End the daemon as systemd would; it must have drained within its time."""
        assert self.daemon is not None
        self.daemon.terminate()
        assert self.daemon.wait(PATIENCE_S) == 0, self.tail()

    def clear(self) -> None:
        """Kill whatever is left, at the end of a test however it went."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if self.daemon is not None:
            self.daemon.wait(PATIENCE_S)

    def tail(self) -> str:
        """Return the end of the daemon's log."""
        return self.log.read_text("utf-8", "replace")[-3000:]

    def limit(self, kind: int, room: int | None) -> None:
        """Leave every process of batchd ``room`` more of a resource than it has now;
        None: as much as it may.
        """
        for process in self.processes():
            if process.role != "other":
                with contextlib.suppress(ProcessLookupError):
                    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                    hard = resource.prlimit(process.pid, kind)[1]
                    soft = hard if room is None else used + room
                    resource.prlimit(process.pid, kind, (soft, hard))

    def drop(self, name: str, tasks: Sequence[Mapping[str, Any]]) -> Path:
        """Drop a task file into the inbox; return the folder that it will have in the outbox."""
        made = self.folder / f"{name}.new"
        made.write_text(json.dumps({"tasks": tasks}))
        made.rename(self.folder / "inbox" / f"{name}.json")
        return self.folder / "outbox" / name

    def processes(self) -> list[Process]:
        """Return everything that belongs to this spool, by environment, directory or mounts."""
        found: dict[int, Process] = {}
        others: list[Process] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError, ValueError):
                    process = self._process(entry)
                    if process.started < self._since:
                        continue
                    if process.role == "daemon" or self._ours(entry):
                        found[process.pid] = process
                    else:
                        others.append(process)
        # A process that holds keys shows its environment to root alone, and one in a box has
        # another: both are known by their parent.
        for process in sorted(others, key=lambda each: each.started):
            if process.parent in found:
                found[process.pid] = process
        return [*found.values()]

    def _ours(self, entry: Path) -> bool:
        with contextlib.suppress(PermissionError):
            return self._bears_the_mark(entry)
        return False

    def _bears_the_mark(self, entry: Path) -> bool:
        if f"CHAOS_MARK={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
            return True
        if self.mark in str((entry / "cwd").readlink()):
            return True
        # A command in a sandbox has neither;
        # the task's directory is mounted in a namespace of its own.
        if _namespace(entry) == self._namespace:
            return False
        mounts = (line.split() for line in (entry / "mountinfo").read_text().splitlines())
        return any(m[4] == "/task" and self.mark in " ".join(m) for m in mounts)

    def _process(self, entry: Path) -> Process:
        pid = int(entry.name)
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        role = "other"
        if self.daemon is not None and pid == self.daemon.pid:
            role = "daemon"
        elif "multiprocessing.forkserver" in command:
            # A worker is a fork of it with a session of its own.
            role = "worker" if int(fields[3]) == pid else "forkserver"
        return Process(pid, int(fields[19]), int(fields[1]), role, fields[0], command.strip())

    def alive(self, ones: Iterable[Process]) -> list[Process]:
        """Return those of ``ones`` that still run."""
        known = {(one.pid, one.started) for one in ones}
        now = (p for p in self.processes() if p.state != "Z")
        return [p for p in now if (p.pid, p.started) in known]


def _namespace(entry: Path) -> str:
    """Return the mounts that a process sees, by number."""
    return str((entry / "ns/mnt").readlink())


@contextlib.contextmanager
def arena(
    folder: Path,
    *server: str,
    processes: int = 3,
    agents: int = 4,
    more: str = "",
    prefix: Sequence[str] = (),
) -> Iterator[tuple[Arena, Model]]:
    """Give a spool and a server; whatever is left of both is killed at the end."""
    model = Model(*server)
    config = _CONFIG.format(base_url=model.base_url, processes=processes, agents=agents) + more
    place = Arena(folder, config, prefix=prefix)
    try:
        yield place, model
    finally:
        place.clear()
        model.stop()


def tasks(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return tasks that all differ, of both kinds in turn, behind ``first`` others."""
    return [
        {"first_prompt": f"task {i}", "model": MODELS[i % 2], "evaluator": "none"}
        for i in range(first, first + count)
    ]


def until(condition: Callable[[], object], timeout_s: float, why: Callable[[], str]) -> None:
    """Wait for what must come: as long as a busy machine may need for it,
    or longer where its work takes longer.
    """
    patience.until(condition, why, max(timeout_s, PATIENCE_S))
