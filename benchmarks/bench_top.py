"""What `batchd top` costs: the agents, whose calls must not become dearer, and itself.

Batches with somebody looking and without take turns,
so that a machine whose speed drifts is fair to both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import TICKS, Daemon, row, stage

TASKS, CALLS, ROUNDS = 100, 4, 5
#: Tasks that wait while top's own cost is measured, and for how long it is (seconds).
QUEUED, LOOKING_S = 5000, 20.0


@contextlib.contextmanager
def looking(daemon: Daemon) -> Iterator[subprocess.Popen[bytes]]:
    """Have `top` look on, on a terminal of 120 columns that somebody reads."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-m", "batchd", "--config", str(daemon.spool / "config.toml"), "top"]
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, env=environment)
    os.close(slave)
    reader = threading.Thread(target=_read, args=(master,), daemon=True)
    reader.start()
    time.sleep(2)  # it is loaded
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        reader.join()
        os.close(master)


def _read(master: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(master, 1 << 16):
            pass


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _calls(daemon: Daemon, name: str) -> float:
    before = daemon.cpu_s()
    daemon.run(name, TASKS)
    return (daemon.cpu_s() - before) * 1000 / (TASKS * CALLS)


def main() -> int:
    """Measure and print."""
    alone, seen = [], []
    with stage(f"steps-{CALLS}", processes=2, agents=16) as (_, daemon):
        daemon.run("warm", 32)
        for i in range(ROUNDS):
            alone.append(_calls(daemon, f"alone-{i}"))
            with looking(daemon):
                seen.append(_calls(daemon, f"seen-{i}"))
    ratio = statistics.median(seen) / statistics.median(alone)
    row(
        "CPU a model call, with `top` looking on",
        f"{statistics.median(seen):.2f} ms",
        "",
        held=True,
    )
    row("  of what it is without", f"{ratio:.2f}", "≤ 1.05", held=ratio <= 1.05)
    with stage(f"latency-1+steps-{CALLS}", processes=2, agents=16) as (_, daemon):
        daemon.drop("queue", [{"first_prompt": f"task {i}"} for i in range(QUEUED)])
        with looking(daemon) as top:
            before = cpu_s(top)
            time.sleep(LOOKING_S)
            share = (cpu_s(top) - before) / LOOKING_S * 100
    row(
        f"`top` itself, 32 agents, {QUEUED:,} tasks queued",
        f"{share:.1f} %",
        "≤ 2.0",
        held=share <= 2,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
