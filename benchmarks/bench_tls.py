"""What TLS adds: handshakes a task, connections that are kept,
and CPU a call beside the same without; needs ``openssl``.

A front that speaks TLS stands before the stand-in server,
with a certificate of its own that batchd is made to trust.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import NO_REPORT, Daemon, row, stage

TASKS, CALLS, ROUNDS = 100, 4, 5
#: So many at a time: no more connections than that are needed.
AGENTS = 32


class Front:
    """The front, and its certificate."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self._key = folder / "cert.pem", folder / "key.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(self._key), "-out", str(self.certificate)]
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                *subject,
                *files,
            ],
            check=True,
            capture_output=True,
        )
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def before(self, base_url: str) -> Iterator[str]:
        """Stand before a server, and give the address at which that is found then."""
        port = base_url.rpartition(":")[2].split("/")[0]
        program = str(Path(__file__).with_name("tls_front.py"))
        command = [sys.executable, program, str(self.certificate), str(self._key), port]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as self._process:
            assert self._process.stdout is not None
            yield f"https://127.0.0.1:{self._process.stdout.readline().strip()}/v1"
            self._process.kill()

    def taken(self) -> int:
        """Return how many connections were made since this was asked last."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())


def cpu_ms(daemon: Daemon, name: str) -> float:
    """Return the CPU milliseconds of a call of one batch."""
    before = daemon.cpu_s()
    daemon.run(name, TASKS)
    return (daemon.cpu_s() - before) * 1000 / (TASKS * CALLS)


def main() -> int:
    """Measure and print."""
    model = f"length-{CALLS - 1}"
    with tempfile.TemporaryDirectory() as folder:
        front = Front(Path(folder))
        os.environ["SSL_CERT_FILE"] = str(front.certificate)
        with (
            stage(model, processes=2, agents=16, extra=NO_REPORT, before=front.before) as (_, safe),
            stage(model, processes=2, agents=16, extra=NO_REPORT) as (_, plain),
        ):
            for each in (safe, plain):
                each.run("warm", AGENTS)
            first, later, pairs = front.taken(), list[int](), list[tuple[float, float]]()
            for i in range(ROUNDS):
                pairs.append((cpu_ms(safe, f"turn-{i}"), cpu_ms(plain, f"turn-{i}")))
                later.append(front.taken())
    made = statistics.median(later)
    row(
        "connections for a first batch of 32 tasks, 32 at a time",
        str(first),
        "≤ 32",
        held=first <= AGENTS,
    )
    row(
        "handshakes a task, batch after batch of 100",
        f"{made / TASKS:.2f}",
        "≤ 0.32",
        held=made <= AGENTS,
    )
    ours, floor = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
    row("CPU a model call over TLS, no commands", f"{ours:.2f} ms", "", held=True)
    row("  the same without", f"{floor:.2f} ms", "", held=True)
    ratio = statistics.median(a / b for a, b in pairs)
    row("  ratio", f"{ratio:.2f}", "", held=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
