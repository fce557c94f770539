"""A provider that allows far less than 32 agents ask for: what fails, what is refused, how long it takes.

The provider's limit is a token bucket. The ideal is the time that it needs to admit all calls, where nobody
ever asks too soon or too late. Requests are counted by the server.
"""

from __future__ import annotations

import argparse
import sys

from harness import Server, row, stage

TASKS, CALLS, PROCESSES, AGENTS = 100, 4, 4, 8


def storm(rps: float, burst: float, retry_after_s: float, *, headers: bool, tasks: int) -> str:
    """Run one storm on a fresh daemon and print its row; return what was missed."""
    options = ("--rps", f"{rps}", "--burst", f"{burst}", "--retry-after", f"{retry_after_s}")
    if not headers:
        options += ("--no-limit-headers",)
    with stage(f"steps-{CALLS}", processes=PROCESSES, agents=AGENTS, server=options) as stages:
        server, daemon = stages
        daemon.drop("storm", [{"dir": "", "first_prompt": f"task {i}"} for i in range(tasks)])
        summary = daemon.summary("storm")
        answered, refused, seconds = counts(server)
    ideal = max(0.0, (answered - burst) / rps)
    failed, each, ratio = tasks - summary["counts"]["completed"], refused / answered, seconds / ideal
    told = "limit headers" if headers else "no headers"
    wait = f"Retry-After {retry_after_s:g} s" if retry_after_s else "no Retry-After"
    held = not failed and each <= 0.05 and ratio <= 1.1
    row(
        f"{rps:g}/s, burst {burst:g}, {wait}, {told}",
        f"{failed}, {each:.3f}, {ratio:.2f}",
        "0, ≤ 0.05, ≤ 1.1",
        held=held,
    )
    return "" if held else "missed"


def counts(server: Server) -> tuple[int, int, float]:
    """Return the answers, the refusals, and the seconds from the first request to the last answer."""
    exchanges = server.get("/log")
    answered = sum(e["status"] == 200 for e in exchanges)
    refused = sum(e["status"] == 429 for e in exchanges)
    first = min(e["at"] for e in exchanges)
    return answered, refused, max(e["at"] + e["seconds"] for e in exchanges) - first


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="other limits too: four minutes")
    every = parser.parse_args().all
    print(f"{TASKS} tasks x {CALLS} calls, {PROCESSES} x {AGENTS} agents: failed tasks, 429s a success, x ideal")
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
