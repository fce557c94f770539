"""CPU a model call, everything included,
against a raw ``AsyncOpenAI`` loop that does the same work in the same run.

The agents' commands run in sandboxes, the loop's in plain subprocesses; the server answers at once.
One row counts the processes of the tool itself, its helpers included; another one all that they
started as well. What starting and following commands takes, agents show that make as many calls
and run none. Batches and loops take turns, and the median of the pairs counts.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import NO_REPORT, row, stage
from measuring import Cost, Work, measured

TASKS, CALLS, ROUNDS = 100, 4, 5
WITH, WITHOUT = f"steps-{CALLS}", f"length-{CALLS - 1}"


def raw(work: Work) -> Cost:
    """Return what a call of the loop costs."""
    return measured(sys.executable, Path(__file__).with_name("floor.py"), work)


def ratio(pairs: Sequence[tuple[Cost, Cost]], of: Callable[[Cost], float]) -> float:
    """Return the median of the pairs' ratios."""
    return statistics.median(of(one) / of(other) for one, other in pairs)


def main() -> int:
    """Measure and print."""
    commands: list[tuple[Cost, Cost]] = []
    none: list[tuple[Cost, Cost]] = []
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    with (
        stage(WITH, processes=2, agents=16, extra=NO_REPORT) as (server, daemon),
        stage(WITHOUT, processes=2, agents=16, extra=NO_REPORT) as (_, talker),
    ):
        for each in (daemon, talker):
            each.run("warm", 32)
        before = daemon.io_bytes()
        for i in range(ROUNDS):
            floor = raw(Work(server.base_url, WITH, TASKS, CALLS))
            commands.append((daemon.cost(f"calls-{i}", TASKS, CALLS), floor))
            floor = raw(Work(server.base_url, WITHOUT, TASKS, CALLS))
            none.append((talker.cost(f"calls-{i}", TASKS, CALLS), floor))
        after = daemon.io_bytes()
    for what, pairs, of, most in (
        ("CPU a model call, with commands", commands, lambda cost: cost.own, 0.7),
        ("CPU a model call, without", none, lambda cost: cost.own, 0.5),
        ("the same with commands, and all that they start", commands, lambda cost: cost.whole, 1.0),
    ):
        mine, floor = (statistics.median(of(pair[n]) for pair in pairs) for n in (0, 1))
        found = ratio(pairs, of)
        row(what, f"{mine:.2f} ms", "", held=True)
        row("  a raw AsyncOpenAI loop that does the same", f"{floor:.2f} ms", "", held=True)
        row("  ratio", f"{found:.2f}", f"≤ {most:.2f}", held=found <= most)
    made = TASKS * CALLS * ROUNDS
    read, written, stored = ((b - a) / made / 1000 for a, b in zip(before, after, strict=True))
    row("bytes a call, with commands: the daemon reads", f"{read:.1f} KB", "", held=True)
    row("  it writes", f"{written:.1f} KB", "", held=True)
    row("  of that to the disk", f"{stored:.1f} KB", "", held=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
