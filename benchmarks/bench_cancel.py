"""`batchd cancel` of 10,000 queued tasks:
until it is answered, and until their results lie in the outbox.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial

from bench_restart import fill
from harness import row, stage

from batchd import control

QUEUED = int(os.environ.get("BATCHD_BENCH_FILES", "10000"))
_BOUND_S, _BOUND_MB = 3, 300
#: How long all of it may take before it counts as stuck.
_PATIENCE_S = 900.0


def cancelled(batches: int, tasks: int) -> tuple[float, float, float, float, float]:
    """Return the seconds until the answer, of them CPU,
    and until the last summary, and the daemon's peak in MB at each.
    """
    prepare = partial(fill, batches=batches, tasks=tasks)
    with stage("hang", processes=1, prepare=prepare) as (_, daemon):
        state = daemon.spool / ".batchd"
        deadline = time.monotonic() + 60
        while not control.request(state, "status")["running"]:
            if time.monotonic() > deadline:
                raise SystemExit((daemon.spool / "log").read_text()[-3000:])
            time.sleep(0.05)
        names = [f"b{number}" for number in range(batches)]
        begun, cpu = time.monotonic(), daemon.cpu_s()
        answer = control.request(state, "cancel", timeout_s=_PATIENCE_S, target=names)
        answered, peak = time.monotonic() - begun, daemon.peak_mb()
        cpu = daemon.cpu_s() - cpu
        assert answer["cancelled"] == batches * tasks, answer
        while control.request(state, "status", timeout_s=_PATIENCE_S)["batches"]["open"]:
            if time.monotonic() - begun > _PATIENCE_S:
                raise SystemExit((daemon.spool / "log").read_text()[-3000:])
            time.sleep(0.1)
        over, most = time.monotonic() - begun, daemon.peak_mb()
        daemon.process.kill()
    return answered, cpu, over, peak, most


def main() -> int:
    """Measure and print."""
    held = True
    for batches, tasks in ((1, QUEUED), (10, QUEUED // 10)):
        answered, cpu, over, peak, most = cancelled(batches, tasks)
        good = answered <= _BOUND_S and peak <= _BOUND_MB
        what = f"a cancel of {QUEUED:,} queued tasks in {batches} batches, answered"
        row(what, f"{answered:.1f} s", f"≤ {_BOUND_S} s", held=answered <= _BOUND_S)
        row("  CPU of it", f"{cpu:.1f} s", "", held=True)
        row(
            "  the daemon's peak until then",
            f"{peak:.0f} MB",
            f"≤ {_BOUND_MB} MB",
            held=peak <= _BOUND_MB,
        )
        row("  all results and summaries written", f"{over:.1f} s, {most:.0f} MB", "", held=True)
        held = held and good
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
