"""Memory and CPU of an idle daemon, and of a thousand agents that all wait for the model."""

from __future__ import annotations

import sys
import time

from harness import row, stage

AGENTS, IDLE_S = 1000, 10.0


def main() -> int:
    """Measure and print."""
    with stage("steps-1") as (_, daemon):
        time.sleep(3)
        before, begun = daemon.cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        share = (daemon.cpu_s() - before) / (time.monotonic() - begun) * 100
        pss = daemon.pss_mb()
    row(
        "idle daemon with its fork server and a warm worker",
        f"{pss:.0f} MB PSS",
        "≤ 170 MB",
        held=pss <= 170,
    )
    row("  its CPU", f"{share:.2f} % of a core", "≤ 0.5 %", held=share <= 0.5)
    with stage("hang", processes=2, agents=AGENTS // 2) as (server, daemon):
        daemon.drop("many", [{"dir": "", "first_prompt": f"task {i}"} for i in range(AGENTS)])
        deadline = time.monotonic() + 120
        while server.get("/totals")["open"] < AGENTS:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {server.get('/totals')} came")
            time.sleep(0.5)
        pss = daemon.pss_mb()
        daemon.process.kill()
    row(
        "1,000 agents waiting, 2 worker processes", f"{pss:.0f} MB PSS", "≤ 500 MB", held=pss <= 500
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
