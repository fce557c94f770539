"""What watching costs:
CPU a model call with `batchd web` attached and without, in turns, in one run.

Two browsers' worth of listening: one to the overview, one to the batch that is being worked on.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from harness import TICKS, Daemon, row, stage

TASKS, CALLS, ROUNDS = 300, 4, 6
#: Reads what it is sent, and throws it away: as a process of its own, it costs the page nothing.
_BROWSER = """
import sys, time, urllib.error, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"})
while True:
    try:
        answer = urllib.request.urlopen(asked)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        time.sleep(0.01)  # the file that was dropped is no batch yet
    else:
        break
for line in answer:
    if line.startswith(b"event"):
        print(line, flush=True)
"""


class Web:
    """``batchd web`` beside a daemon."""

    def __init__(self, spool: Path) -> None:
        command = [sys.executable, "-m", "batchd", "--config", str(spool / "config.toml")]
        self.process = subprocess.Popen(
            [*command, "web", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[0]
        self.token = (spool / ".batchd" / "web.token").read_text().strip()

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / TICKS

    def rss_mb(self) -> float:
        """Return its resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @contextlib.contextmanager
    def watched(self, *paths: str) -> Iterator[None]:
        """Have a browser listen at each path, from its first event on."""
        command = [sys.executable, "-c", _BROWSER]
        with contextlib.ExitStack() as stack:
            for path in paths:
                browser = stack.enter_context(
                    subprocess.Popen(
                        [*command, f"{self.address}live/{path}", self.token], stdout=subprocess.PIPE
                    )
                )
                stack.callback(browser.kill)
                assert browser.stdout is not None
                if not browser.stdout.readline():
                    raise SystemExit(f"the browser at {path} ended before its first event")
            yield


def measured(daemon: Daemon, name: str, web: Web | None = None) -> float:
    """Return the CPU milliseconds of one call, daemon and workers;
    ``web``: watched all the time.
    """
    before = daemon.cpu_s()
    daemon.drop(name, [{"dir": "", "first_prompt": f"task {i}"} for i in range(TASKS)])
    with web.watched("overview", f"batches/{name}") if web else contextlib.nullcontext():
        summary = daemon.summary(name)
    if summary["counts"]["completed"] != TASKS:
        raise SystemExit(f"{name}: {summary['counts']}")
    return (daemon.cpu_s() - before) * 1000 / (TASKS * CALLS)


def main() -> int:
    """Measure and print."""
    alone, watched, web_s, wall_s = [], [], 0.0, 0.0
    with stage(f"steps-{CALLS}", processes=2, agents=16) as (_, daemon):
        web = Web(daemon.spool)
        try:
            daemon.run("warm", 32)
            for i in range(ROUNDS):
                # Who goes first changes: a second batch may find caches warm, or a heap grown.
                for attached in (i % 2 == 0, i % 2 == 1):
                    if not attached:
                        alone.append(measured(daemon, f"alone-{i}"))
                        continue
                    begun, before = time.monotonic(), web.cpu_s()
                    watched.append(measured(daemon, f"watched-{i}", web))
                    web_s += web.cpu_s() - before
                    wall_s += time.monotonic() - begun
            with web.watched("overview"):
                before = web.cpu_s()
                time.sleep(10)
                idle = (web.cpu_s() - before) / 10
            asked = urllib.request.Request(
                f"{web.address}api/overview", headers={"Authorization": f"Bearer {web.token}"}
            )
            urllib.request.urlopen(asked).close()
            memory = web.rss_mb()
        finally:
            web.process.terminate()
            web.process.wait(10)
    ratio = statistics.median(watched) / statistics.median(alone)
    row("CPU a model call, no browser", f"{statistics.median(alone):.2f} ms", "", held=True)
    row(
        "  with two browsers attached, same run",
        f"{statistics.median(watched):.2f} ms",
        "",
        held=True,
    )
    row("  ratio", f"{ratio:.3f}", "≤ 1.05", held=ratio <= 1.05)
    row(
        "batchd web, of a core while tasks run",
        f"{web_s / wall_s:.1%}",
        "≤ 10 %",
        held=web_s / wall_s <= 0.1,
    )
    row("  while nothing happens, one browser", f"{idle:.1%}", "≤ 2 %", held=idle <= 0.02)
    row("  its memory", f"{memory:.0f} MB", "≤ 80 MB", held=memory <= 80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
