"""What directories that travel cost: the same tasks on a worker that joined,
whose commands change a file each, or none.

Daemon, worker and model are on this machine; the worker uses nothing of the daemon's disk. CPU is
that of a step: of the daemon's own process, of the children that lay directories out, and of the
worker with all that it started, the commands included, which are the same on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import NO_REPORT, TICKS, Daemon, Server, tree
from scale import cpu_s, up
from standin.record import save

from batchd.demo.recordings import Recording
from batchd.records import Answer, ToolCall

_CONFIG = """\
[agent]
model = "standin/demo"
[providers.standin]
base_url = "{base_url}"
max_concurrent = 1000
[models."standin/demo"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 0
agents_per_process = 16
listen = "127.0.0.1:{port}"
[evaluation]
by = "none"
[limits]
max_calls = 1000
[log]
level = "warning"
"""
#: By the prompt of its tasks, what each of their commands is.
_COMMANDS = {"changes nothing": "true", "changes a file": "echo {turn} > file{turn}"}


def recorded(folder: Path, steps: int) -> None:
    """Have the model give so many commands, one a turn, by the task's prompt."""
    for prompt, command in _COMMANDS.items():
        calls = [
            Answer(
                content="",
                tool_calls=(
                    ToolCall(
                        f"call_{turn}", "shell", json.dumps({"command": command.format(turn=turn)})
                    ),
                ),
                finish_reason="tool_calls",
            )
            for turn in range(steps)
        ]
        save(
            folder,
            Recording(first_prompt=prompt, model="demo", answers=(*calls, Answer(content="Done."))),
        )


@contextlib.contextmanager
def serving(folder: Path, base_url: str) -> Iterator[tuple[Daemon, int]]:
    """Run a daemon, and a worker that has joined it; yield both, the worker by its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    daemon = Daemon(folder, NO_REPORT + _CONFIG.format(base_url=base_url, port=port))
    command = [sys.executable, "-m", "batchd", "--config", str(folder / "config.toml")]
    ticket = subprocess.run(
        [*command, "invite", "127.0.0.1"], capture_output=True, check=True
    ).stdout
    worker = subprocess.Popen(
        [*command[:3], "worker", "--join", "-", "--cache", str(folder / "cache")],
        stdin=subprocess.PIPE,
    )
    assert worker.stdin is not None
    worker.stdin.write(ticket)
    worker.stdin.close()
    try:
        while not up(folder):
            time.sleep(0.1)
        yield daemon, worker.pid
    finally:
        daemon.process.terminate()
        daemon.process.wait(60)
        worker.wait(60)


def whole_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of what descends from it, what has ended included."""
    found = cpu_s(tree(pid))
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            found += (int(fields[13]) + int(fields[14])) / TICKS
    return found


def taken(daemon: int, worker: int) -> tuple[float, float, float]:
    """Return the CPU seconds of the daemon's process, of its children and of the worker."""
    own = cpu_s([daemon])
    return own, whole_cpu_s(daemon) - own, whole_cpu_s(worker)


@contextlib.contextmanager
def model(folder: Path, steps: int) -> Iterator[str]:
    """Run the stand-in server with the recordings; its base URL."""
    folder.mkdir()
    recorded(folder, steps)
    server = Server("--recordings", str(folder))
    try:
        yield server.base_url
    finally:
        server.process.terminate()
        server.process.wait()


def main() -> None:
    """Print both rows, as often as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    made = args.tasks * args.steps
    print("ms of CPU a step: the daemon's process, its children, the worker")
    print(f"{'each step':<16} {'a second':>9} {'daemon':>9} {'children':>9} {'worker':>9}")
    with tempfile.TemporaryDirectory(prefix="batchd-travelling-") as name:
        folder = Path(name)
        with (
            model(folder / "scripts", args.steps) as base_url,
            serving(folder, base_url) as (daemon, worker),
        ):
            for turn in range(args.rounds):
                for prompt in _COMMANDS:
                    before = taken(daemon.process.pid, worker)
                    begun = time.monotonic()
                    batch = f"{prompt.replace(' ', '-')}-{turn}"
                    daemon.drop(batch, [{"first_prompt": prompt}] * args.tasks)
                    counts = daemon.summary(batch, 600)["counts"]
                    seconds = time.monotonic() - begun
                    if counts["completed"] != args.tasks:
                        raise SystemExit(f"{counts}\n{(folder / 'log').read_text()[-3000:]}")
                    after = taken(daemon.process.pid, worker)
                    costs = [(b - a) * 1000 / made for a, b in zip(before, after, strict=True)]
                    row = " ".join(f"{cost:>9.2f}" for cost in costs)
                    print(f"{prompt:<16} {made / seconds:>9.0f} {row}", flush=True)


if __name__ == "__main__":
    main()
