"""From the drop to the summary, against what the model's latency alone would take."""

from __future__ import annotations

import sys

from harness import row, stage


def makespan(tasks: int, calls: int, latency_s: float, processes: int, agents: int) -> float:
    """Return the ratio of the time taken to the ideal; the pool is warm."""
    slots = processes * agents
    ideal = -(-tasks // slots) * calls * latency_s if slots < tasks else calls * latency_s
    ideal = max(ideal, tasks * calls * latency_s / slots)
    model = f"latency-{latency_s}+steps-{calls}"
    with stage(model, processes=processes, agents=agents) as (_, daemon):
        daemon.run("warm", slots)
        took = min(daemon.run(f"run-{i}", tasks) for i in range(2))
    print(
        f"  {tasks} tasks x {calls} calls of {latency_s} s on {slots} agents: {took:.2f} s, ideal {ideal:.2f} s"
    )
    return took / ideal


def main() -> int:
    """Measure and print."""
    ratio = makespan(100, 4, 0.5, 4, 8)
    row(
        "makespan, 100 tasks x 4 calls, 0.5 s, 4 x 8 agents",
        f"{ratio:.3f} x ideal",
        "≤ 1.03",
        held=ratio <= 1.03,
    )
    ratio = makespan(20, 2, 0.2, 8, 1)
    row(
        "makespan, 20 tasks x 2 calls, 0.2 s, 8 processes",
        f"{ratio:.3f} x ideal",
        "≤ 1.35",
        held=ratio <= 1.35,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
