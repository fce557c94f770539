"""From the drop to the summary, beside a raw ``AsyncOpenAI`` loop
that does the same, and against the model's latency alone.

Batches and loops take turns, and the median of the pairs counts. The loop's commands run in plain
subprocesses, without a journal; both are warm.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from harness import NO_REPORT, row, stage
from measuring import AT_ONCE, Work, measured

TASKS, CALLS, LATENCY_S, ROUNDS = 100, 4, 0.5, 5
#: Without more agents than fit at a time, the last tasks wait for a whole turn of the first.
_IDEAL_S = -(-TASKS // AT_ONCE) * CALLS * LATENCY_S


def beside_a_loop() -> list[tuple[float, float]]:
    """Return the seconds of each pair: of a batch, and of the loop."""
    model = f"latency-{LATENCY_S}+steps-{CALLS}"
    floor = Path(__file__).with_name("floor.py")
    pairs = []
    with stage(model, processes=4, agents=AT_ONCE // 4, extra=NO_REPORT) as (server, daemon):
        daemon.run("warm", AT_ONCE)
        for i in range(ROUNDS):
            work = Work(server.base_url, model, TASKS, CALLS)
            loop = measured(sys.executable, floor, work).seconds
            pairs.append((daemon.run(f"run-{i}", TASKS), loop))
    return pairs


def one_each(tasks: int, calls: int, latency_s: float, processes: int) -> float:
    """Return how long a batch takes in processes of one agent each, as a multiple of its ideal."""
    with stage(f"latency-{latency_s}+steps-{calls}", processes=processes) as (_, daemon):
        daemon.run("warm", processes)
        took = statistics.median(daemon.run(f"run-{i}", tasks) for i in range(3))
    return took / (-(-tasks // processes) * calls * latency_s)


def main() -> int:
    """Measure and print."""
    pairs = beside_a_loop()
    mine, loop = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    row("100 tasks x 4 calls of 0.5 s, 4 x 8 agents", f"{mine:.2f} s", "", held=True)
    row("  a raw AsyncOpenAI loop that does the same", f"{loop:.2f} s", "", held=True)
    row("  ratio", f"{ratio:.3f}", "≤ 1.02", held=ratio <= 1.02)
    row("  of what the latency alone takes", f"{mine / _IDEAL_S:.3f}", "", held=True)
    ratio = one_each(20, 2, 0.2, 8)
    row(
        "20 tasks x 2 calls of 0.2 s, 8 processes, x ideal",
        f"{ratio:.3f}",
        "≤ 1.35",
        held=ratio <= 1.35,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
