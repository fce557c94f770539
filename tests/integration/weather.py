"""A whole daemon under the weather: `batchd serve` as a user runs it,
judged by its outbox, its log and the server's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import warm
from loglines import logged
from patience import PATIENCE_S, until

from batchd import control
from batchd.errors import NoDaemonError
from tests.conftest import NO_REPORT

#: A whole task file.
TASK = b'{"first_prompt": "look out of the window"}'

_CONFIG = """\
[paths]
inbox = "{inbox}"
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
[pool]
processes = 2
drain_s = 2
heartbeat_timeout_s = {heartbeat_s}
[evaluation]
by = "none"
[governor]
first_backoff_s = 0.05
[spool]
settle_s = {settle_s}
scan_s = {scan_s}
watch = "{watch}"
[log]
format = "json"
"""


class Station:
    """A spool with its daemon."""

    def __init__(
        self,
        folder: Path,
        base_url: str,
        *,
        model: str = "steps-1",
        inbox: Path | None = None,
        watch: str = "inotify",
        scan_s: float = 0.3,
        settle_s: float = 0.3,
        heartbeat_s: float = 10.0,
        reports: bool = False,
        more: str = "",
    ) -> None:
        self.folder = folder
        self.base_url = base_url
        self.inbox = inbox or folder / "inbox"
        self.outbox = folder / "outbox"
        self.process: subprocess.Popen[bytes] | None = None
        #: Whether its processes are to be seen in /proc as those of a user are.
        self.cold = False
        text = _CONFIG.format(
            inbox=self.inbox,
            model=model,
            base_url=base_url,
            watch=watch,
            scan_s=scan_s,
            settle_s=settle_s,
            heartbeat_s=heartbeat_s,
        )
        before = "" if reports else NO_REPORT
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(before + text + more)

    def command(self, *prefix: str) -> list[str]:
        """Return the command line of the daemon."""
        config = str(self.folder / "config.toml")
        return [*prefix, sys.executable, "-m", "batchd", "--config", config, "serve"]

    def start(self, *prefix: str) -> None:
        """Start the daemon in a group of its own, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = (subprocess.Popen if self.cold else warm.Popen)(
                self.command(*prefix), stderr=log, env=self.environment, process_group=0
            )
        until(lambda: self.answers() or self.ended(), self.text)
        assert not self.ended(), self.text()

    @property
    def environment(self) -> dict[str, str]:
        """What it runs in: with a sitecustomize.py of its own folder, if there is one."""
        paths = [str(warm.ROOT)]
        if (self.folder / "sitecustomize.py").exists():
            paths.insert(0, str(self.folder))
        return {**os.environ, "PYTHONPATH": ":".join(paths)}

    def answers(self) -> bool:
        """Return whether the daemon is up."""
        with contextlib.suppress(NoDaemonError, OSError):
            return bool(control.request(self.folder / ".batchd", "status"))
        return False

    def ended(self) -> bool:
        """Return whether the daemon is gone."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Drain the daemon; it must end well."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(PATIENCE_S)
            self.process = None
            assert code == 0, self.text()

    @contextlib.contextmanager
    def serving(self, *prefix: str) -> Iterator[Station]:
        """Run the daemon meanwhile."""
        self.start(*prefix)
        try:
            yield self
            self.stop()
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.wait()

    def processes(self) -> list[int]:
        """Return the daemon and all that descends from it."""
        assert self.process is not None
        parents = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    # What goes in

    def drop(self, name: str | bytes, data: bytes = TASK) -> None:
        """Move a whole file into the inbox."""
        new = self.folder / "new"
        new.write_bytes(data)
        new.rename(self.inbox / os.fsdecode(name))

    # What comes out

    def summary(self, batch: str) -> dict[str, Any]:
        """Wait for a batch's summary, and return it."""
        path = self.outbox / batch / "summary.json"
        until(path.exists, lambda: f"no {path}\n{self.text()}")
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def completed(self, batch: str, count: int = 1) -> None:
        """Wait for a batch's end, at which all of its tasks must have completed."""
        summary = self.summary(batch)
        assert summary["counts"]["completed"] == count, summary

    def refused(self, batch: str) -> str:
        """Wait for a refusal, and return its errors, a line each."""
        summary = self.summary(batch)
        assert summary["status"] == "rejected", summary
        return "\n".join(f"{e['place']}: {e['message']} ({e['hint']})" for e in summary["errors"])

    def text(self) -> str:
        """Return the log."""
        return (self.folder / "log").read_text(errors="replace")

    def logged(self, event: str, within: str = "") -> list[Mapping[str, Any]]:
        """Return the log's lines about something, as far as their message holds ``within``."""
        lines = logged(self.folder / "log", event)
        return [line for line in lines if within in str(line.get("message", ""))]

    def status(self, *options: str) -> str:
        """Return what `batchd status` prints."""
        done = warm.run([*self.command()[:-1], "status", *options], env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rests(self) -> bool:
        """Return whether no task is at work."""
        return not json.loads(self.status("--json"))["daemon"]["running"]

    def troubles(self) -> list[dict[str, Any]]:
        """Return what the daemon says that it cannot do."""
        found: list[dict[str, Any]] = json.loads(self.status("--json"))["daemon"]["troubles"]
        return found

    def asked(self) -> list[dict[str, Any]]:
        """Return the requests that the stand-in server has seen."""
        with urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}/log") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def rss_mb(self) -> float:
        """Return the most memory that the daemon ever had."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1024


def answer_after(base_url: str, latency_s: float) -> None:
    """Have a stand-in server take so long for each answer from now on."""
    change = json.dumps({"latency_s": latency_s}).encode()
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/control", change):
        pass


@contextlib.contextmanager
def mounted(folder: Path, options: str = "size=16m") -> Iterator[None]:
    """Have a folder be a small disk of its own meanwhile, where that is possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"{options},mode=755", "weather", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def filled(path: Path, left: int) -> None:
    """Write a file that leaves so many bytes of its disk free, or a few less;
    others may write to it meanwhile.
    """
    disk = os.statvfs(path.parent)
    with contextlib.suppress(OSError), path.open("wb", 0) as file:
        for _ in range(disk.f_bfree - left // disk.f_frsize):
            file.write(bytes(disk.f_frsize))


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """Have a folder be a file system meanwhile that answers nothing,
    as one over a lost network; then it is as it was.
    """
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs to mount a file system of its own")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hanging", os.fsencode(folder), b"fuse.hanging", 0, options):
        os.close(device)
        pytest.skip(f"cannot mount it: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(device)  # what waits is refused
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
