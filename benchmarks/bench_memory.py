"""Memory and CPU of an idle daemon, and of a thousand agents that all wait for the model.

They wait for their first answer over chat completions, and over Responses for their second, with 20
KB of sealed thinking that came with the first in each conversation. What is counted is what they
have once all of them wait, and what of it a burst of a thousand answers had taken is given back.
"""

from __future__ import annotations

import sys
import time

from harness import Server, row, stage

from batchd.pool import threads

#: Idle for longer than any look's period, and for so long that a look more or less does not count.
AGENTS, SETTLE_S, IDLE_S = 1000, 10.0, 120.0
#: Models that leave agents waiting, and how many answers each has had by then.
FRESH, SEALED = ("hang", 0), ("opaque-20000+after-1+hang+length-2", 1)
RESPONSES = f'[models."bench/{SEALED[0]}"]\napi = "responses"\n'


def waiting(model: tuple[str, int], extra: str = "") -> float:
    """Return the MB of a daemon whose agents all wait."""
    name, answers = model
    with stage(name, processes=2, agents=AGENTS // 2, extra=extra) as (server, daemon):
        daemon.drop("many", [{"dir": "", "first_prompt": f"task {i}"} for i in range(AGENTS)])
        _all_wait(server, answers * AGENTS)
        time.sleep(threads.EVERY_S + 2)
        pss = daemon.pss_mb()
        daemon.process.kill()
    return pss


def _all_wait(server: Server, answered: int) -> None:
    """Return once so many calls are answered, and every agent has made the next one."""
    deadline = time.monotonic() + 120
    while True:
        totals = server.get("/totals")
        if totals["open"] == AGENTS and totals["requests"] == answered + AGENTS:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"only {totals} came")
        time.sleep(0.5)


def main() -> int:
    """Measure and print."""
    with stage("steps-1") as (_, daemon):
        time.sleep(SETTLE_S)
        before, begun = daemon.threads_cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        share = (daemon.threads_cpu_s() - before) / (time.monotonic() - begun) * 100
        pss = daemon.pss_mb()
    row(
        "idle daemon with its fork server and a warm worker",
        f"{pss:.0f} MB PSS",
        "≤ 170 MB",
        held=pss <= 170,
    )
    what = f"  its CPU in {IDLE_S:.0f} s, by the scheduler's count"
    row(what, f"{share:.3f} % of a core", "≤ 0.2 %", held=share <= 0.2)
    pss = waiting(FRESH)
    row(
        "1,000 agents waiting, 2 worker processes", f"{pss:.0f} MB PSS", "≤ 300 MB", held=pss <= 300
    )
    pss = waiting(SEALED, RESPONSES)
    row(
        "  over Responses, with 20 KB of sealed thinking each",
        f"{pss:.0f} MB PSS",
        "≤ 300 MB",
        held=pss <= 300,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
