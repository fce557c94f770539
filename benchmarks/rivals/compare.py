"""batchd beside other agents' libraries, in turns against one stand-in server:
processor time a call, and time against the ideal.

``make rivals`` makes them an environment of their own, and runs this in batchd's. All do the same
work, 32 agents at a time, with commands: batchd's run in sandboxes, theirs in plain subprocesses.
The medians of all rounds are printed as a table of Markdown.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from harness import NO_REPORT, stage
from measuring import AT_ONCE, Cost, Work, measured

_HERE = Path(__file__).parent
TASKS, CALLS, ROUNDS = 100, 4, 5
LATENCY_S, SLOW_ROUNDS = 0.5, 3
#: What each is, and its program here.
RIVALS = {
    "openai-agents": "openai_agents.py",
    "pydantic-ai": "pydantic_agents.py",
    "mini-swe-agent": "swe_agents.py",
    "Inspect": "inspect_agents.py",
}
Measure = Callable[[int], Cost]


def contest(model: str, rounds: int, python: str) -> dict[str, list[Cost]]:
    """Let all take turns; return what each cost, round by round."""
    with stage(model, processes=2, agents=AT_ONCE // 2, extra=NO_REPORT) as (server, daemon):
        work = Work(server.base_url, model, TASKS, CALLS)

        def other(python: str, program: Path, _: int) -> Cost:
            server.reset()
            return measured(python, program, work)

        entrants: dict[str, Measure] = {
            "batchd": lambda turn: daemon.cost(f"turn-{turn}", TASKS, CALLS),
            "raw AsyncOpenAI loop": partial(other, sys.executable, _HERE.parent / "floor.py"),
            **{name: partial(other, python, _HERE / file) for name, file in RIVALS.items()},
        }
        daemon.run("warm", AT_ONCE)
        found: dict[str, list[Cost]] = {name: [] for name in entrants}
        for turn in range(rounds):
            # Who comes first in one round comes last in the next.
            order = [*entrants] if turn % 2 else [*entrants][::-1]
            for name in order:
                found[name].append(entrants[name](turn))
                print(f"  {name}: {found[name][-1]}", file=sys.stderr)
    return found


def median(costs: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    """Return the median of one figure."""
    return statistics.median(map(of, costs))


def main(python: str) -> None:
    """Measure, and print the table. ``python``: that of the rivals' environment."""
    quick = contest(f"steps-{CALLS}", ROUNDS, python)
    slow = contest(f"latency-{LATENCY_S}+steps-{CALLS}", SLOW_ROUNDS, python)
    ideal = -(-TASKS // AT_ONCE) * CALLS * LATENCY_S
    print(
        f"| | CPU ms a call | with all that it starts | wall-clock at {LATENCY_S:g} s, of the ideal |"
    )
    print("| --- | --- | --- | --- |")
    for name, costs in quick.items():
        own, whole = median(costs, lambda c: c.own), median(costs, lambda c: c.whole)
        took = median(slow[name], lambda c: c.seconds) / ideal
        print(f"| {name} | {own:.1f} | {whole:.1f} | {took:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1])
