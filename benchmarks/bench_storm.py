"""A provider that allows far less than 32 agents ask for:
what fails, what is refused, how long it takes.

The provider's limit is a token bucket. The ideal is the time that it needs to admit all calls,
where no agent ever asks too soon or too late. Requests are counted by the server.
"""

from __future__ import annotations

import argparse
import sys
import time

from harness import Server, row, stage

TASKS, CALLS, PROCESSES, AGENTS = 100, 4, 4, 8


def storm(rps: float, burst: float, retry_after_s: float, *, headers: bool, tasks: int) -> None:
    """Run one storm on a fresh daemon, whose pool is warm, and print its row."""
    options = ["--rps", f"{rps}", "--burst", f"{burst}", "--retry-after", f"{retry_after_s}"]
    if not headers:
        options.append("--no-limit-headers")
    model = f"steps-{CALLS}"
    other = Server()
    extra = f'[providers.other]\nbase_url = "{other.base_url}"\n'
    with stage(model, processes=PROCESSES, agents=AGENTS, server=tuple(options), extra=extra) as (
        server,
        daemon,
    ):
        warm = {"dir": "", "first_prompt": "get up", "model": "other/steps-1"}
        daemon.drop("warm", [warm] * PROCESSES * AGENTS)
        daemon.summary("warm")
        other.process.terminate()
        made = [{"dir": "", "first_prompt": f"task {i}"} for i in range(tasks)]
        begun = daemon.drop("storm", made)
        summary = daemon.summary("storm")
        seconds = time.time() - begun
        statuses = [exchange["status"] for exchange in server.get("/log")]
    answered, refused = statuses.count(200), statuses.count(429)
    failed = tasks - summary["counts"]["completed"]
    ratio = seconds / ((answered - burst) / rps)
    wait = f"Retry-After {retry_after_s:g} s" if retry_after_s else "no Retry-After"
    row(
        f"{rps:g}/s, burst {burst:g}, {wait}, {'limit headers' if headers else 'no headers'}",
        f"{failed}, {refused / answered:.3f}, {ratio:.2f}",
        "0, ≤ 0.05, ≤ 1.1",
        held=not failed and refused <= 0.05 * answered and ratio <= 1.1,
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="other limits too: four minutes")
    every = parser.parse_args().all
    print(
        f"{TASKS} tasks x {CALLS} calls, {PROCESSES} x {AGENTS} agents: failed tasks, 429s a success, x ideal"
    )
    storm(20, 20, 1, headers=False, tasks=TASKS)
    storm(20, 20, 1, headers=True, tasks=TASKS)
    if every:
        storm(20, 20, 0, headers=False, tasks=TASKS)
        storm(5, 5, 1, headers=False, tasks=TASKS)
        storm(50, 1, 1, headers=False, tasks=3 * TASKS)
        storm(50, 1, 1, headers=True, tasks=3 * TASKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
