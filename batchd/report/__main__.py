"""The process that makes reports: a job on each line of its input,
what came of it on each line of its output.

Started by ``report_process`` as ``python -P -m batchd.report PID``, the number being its own; with
``--behind``, all else that the machine does goes before.
It ends with its input, and with the process that started it.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from batchd import decoders, free_room, processes
from batchd.report.building import make
from batchd.report.report_process import ReportJob, ReportOutcome
from batchd.spool import files, outbox
from batchd.store.reader import StoreReader

#: Agents, and all else that the machine does, go before a large report.
_NICE = 10
_MEMORY = 2 << 30
_FILE = 1 << 30
#: What the disk must have left behind a report: results and the summary come after it.
_ROOM = 16 << 20


def main() -> int:
    """Make reports until the input ends."""
    processes.end_with(sys.argv[1], expendable=True)
    if "--behind" in sys.argv:
        os.nice(_NICE)
    for what, most in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))
    jobs = decoders.decoder(ReportJob)
    for line in sys.stdin.buffer:
        try:
            outcome = ReportOutcome(bytes=_made(jobs.decode(line)))
        except free_room.NoRoomError as error:
            outcome = ReportOutcome(error=f"{error.filename}: {error.strerror}; {error.fix}")
        except Exception as error:  # noqa: BLE001 (whatever it is, this report fails, and the next may not)
            outcome = ReportOutcome(error=f"{type(error).__name__}: {error}")
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _made(job: ReportJob) -> int:
    """Write a report into its batch's folder; return its size."""
    target = Path(job.target)
    with StoreReader(Path(job.store)) as reader:
        data = make(reader, [reader.batch(job.batch)], target.parent, job.style)
    files.make_folder(target.parent)
    room = replace(free_room.OUTBOX, size=len(data) + _ROOM)
    free_room.insist(str(target.parent), room)
    outbox.publish(target, data, replace=True)
    return len(data)


if __name__ == "__main__":
    sys.exit(main())
