"""What metrics and traces add to the CPU of a model call:
daemons with and without them take turns in one run.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

from harness import Daemon, row, stage

TASKS, CALLS, ROUNDS, REPEATS = 100, 4, 3, 5
#: Prometheus asks every 15 to 60 seconds; here it does more often, to be fair to the bound.
SCRAPE_S = 5.0


class _Receiver(http.server.BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def scraping(port: int) -> Iterator[None]:
    """Fetch the metrics again and again meanwhile."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(SCRAPE_S):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cpu_ms(daemon: Daemon, name: str) -> float:
    """Return the CPU milliseconds of a model call, in a batch of many."""
    before = daemon.cpu_s()
    daemon.run(name, TASKS)
    time.sleep(1.5)  # what is exported later belongs to it
    return (daemon.cpu_s() - before) * 1000 / (TASKS * CALLS)


def measure(figures: dict[str, list[float]], extras: dict[str, str], port: int) -> None:
    """Add some rounds of each kind, on daemons of their own:
    one process is always a little faster than another.
    """
    with contextlib.ExitStack() as stages:
        daemons = {}
        for kind, extra in extras.items():
            stand = stage(f"steps-{CALLS}", processes=2, agents=16, extra=extra)
            _, daemons[kind] = stages.enter_context(stand)
            daemons[kind].run("warm", 32)
        stages.enter_context(scraping(port))
        for i in range(ROUNDS):
            # In another order each time: the first is not always the coldest.
            kinds = [*daemons][i % 3 :] + [*daemons][: i % 3]
            for kind in kinds:
                figures[kind].append(cpu_ms(daemons[kind], f"calls-{i}"))


def main() -> int:
    """Measure and print."""
    port = free_port()
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    sink = f"http://127.0.0.1:{receiver.server_address[1]}"
    extras = {
        "nothing": "",
        "metrics": f'[metrics]\nlisten = "127.0.0.1:{port}"\n',
        "traces": f'[traces]\nendpoint = "{sink}"\n',
    }
    figures: dict[str, list[float]] = {kind: [] for kind in extras}
    for _ in range(REPEATS):
        measure(figures, extras, port)
    bare = figures["nothing"]
    row("CPU a model call, nothing attached", f"{statistics.median(bare):.3f} ms", "", held=True)
    for kind, bound in (("metrics", 0.05), ("traces", 0.0)):
        share = statistics.median(a / b for a, b in zip(figures[kind], bare, strict=True)) - 1
        value = f"{statistics.median(figures[kind]):.3f} ms, {share:+.1%}"
        allowed = f"≤ +{bound:.0%}" if bound else ""
        row(f"  with {kind}", value, allowed, held=share <= bound or not bound)
    return 0


if __name__ == "__main__":
    sys.exit(main())
