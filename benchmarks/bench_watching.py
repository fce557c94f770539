"""What all that look on cost together: `top`, two browsers, and metrics in a file and fetched.

Daemons with and without them take turns in one run, and are restarted again and again: one process
is always a little faster than another.
"""

from __future__ import annotations

import contextlib
import statistics
import sys

from bench_metrics import free_port, scraping
from bench_top import looking
from bench_web import Web, measured
from harness import row, stage

CALLS, ROUNDS, REPEATS = 4, 2, 6


def measure(alone: list[float], watched: list[float]) -> None:
    """Add some rounds of both kinds, on daemons of their own."""
    port = free_port()
    metrics = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
    with contextlib.ExitStack() as stages:
        stand = stage(f"steps-{CALLS}", processes=2, agents=16)
        _, bare = stages.enter_context(stand)
        stand = stage(f"steps-{CALLS}", processes=2, agents=16, extra=metrics)
        _, seen = stages.enter_context(stand)
        web = Web(seen.spool)
        stages.callback(web.process.kill)
        for daemon in (bare, seen):
            daemon.run("warm", 32)
        for i in range(ROUNDS):
            # Who goes first changes: the first is not always the coldest.
            for attached in (i % 2 == 0, i % 2 == 1):
                if attached:
                    with looking(seen), scraping(port):
                        watched.append(measured(seen, f"watched-{i}", web))
                else:
                    alone.append(measured(bare, f"alone-{i}"))


def main() -> int:
    """Measure and print."""
    alone: list[float] = []
    watched: list[float] = []
    for _ in range(REPEATS):
        measure(alone, watched)
    ratio = statistics.median(a / b for a, b in zip(watched, alone, strict=True))
    row("CPU a model call, no viewer", f"{statistics.median(alone):.2f} ms", "", held=True)
    row(
        "  `top`, two browsers and metrics attached",
        f"{statistics.median(watched):.2f} ms",
        "",
        held=True,
    )
    row("  ratio", f"{ratio:.3f}", "≤ 1.05", held=ratio <= 1.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
