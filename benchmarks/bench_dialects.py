"""CPU a model call in each dialect, everything included,
against the same work over chat completions in the same run.

The stand-in's own processor time is not counted, nor are the agents' commands. It thinks in the
newer dialects, and what it sealed of that goes through the journal and back, call by call: that is
part of what they cost. Batches take turns, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator

from harness import Daemon, row, stage

DIALECTS = ("chat", "responses", "messages")
CALLS, ROUNDS = 4, 5
#: What agents do, as the stand-in calls it;
#: and how many of them do it, so that each batch takes long enough to count.
WORK = {"with commands": (f"steps-{CALLS}", 100), "without commands": (f"length-{CALLS - 1}", 300)}


def measure(model: str, tasks: int) -> dict[str, list[float]]:
    """Return the CPU milliseconds of a call in each round, by dialect."""
    found: dict[str, list[float]] = {name: [] for name in DIALECTS}
    with contextlib.ExitStack() as stack:
        daemons = {name: stack.enter_context(_stage(model, name)) for name in DIALECTS}
        for daemon in daemons.values():
            daemon.run("warm", 32)
        for i in range(ROUNDS):
            for name, daemon in daemons.items():
                before = daemon.cpu_s()
                daemon.run(f"calls-{i}", tasks)
                found[name].append((daemon.cpu_s() - before) * 1000 / (tasks * CALLS))
    return found


@contextlib.contextmanager
def _stage(model: str, dialect: str) -> Iterator[Daemon]:
    extra = f'[models."bench/{model}"]\napi = "{dialect}"\n'
    with stage(model, processes=2, agents=16, extra=extra) as (server, daemon):
        yield daemon
        spoken = {exchange["dialect"] for exchange in server.get("/log")}
        assert spoken == {dialect}, spoken


def main() -> int:
    """Measure and print."""
    good = True
    for what, (model, tasks) in WORK.items():
        found = measure(model, tasks)
        chat = found["chat"]
        row(f"CPU a model call, {what}: chat", f"{statistics.median(chat):.2f} ms", "", held=True)
        for name in DIALECTS[1:]:
            ratio = statistics.median(a / b for a, b in zip(found[name], chat, strict=True))
            row(f"  {name}, of chat's", f"{ratio:.2f}", "≤ 1.20", held=ratio <= 1.2)
            good = good and ratio <= 1.2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
