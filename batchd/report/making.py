"""The child that makes reports, one after another.

With ``--behind``, all else that the machine does goes before.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from batchd import decoders, free_room, processes
from batchd.report.building import Style, make
from batchd.spool import files, outbox
from batchd.store.queries import StoreReader

BEHIND = "--behind"
#: Agents, and all else that the machine does, go before a large report.
_NICE = 10
_MEMORY = 2 << 30
_FILE = 1 << 30
#: What the disk must have left behind a report: results and the summary come after it.
_ROOM = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """One report, on one batch. The answer is why there is none; empty: there is one."""

    #: The path of the store.
    store: str
    batch: str
    #: The path of the report.
    target: str
    style: Style


def main() -> int:
    """Make reports until the input ends."""
    processes.end_with(sys.argv[1], expendable=True)
    if BEHIND in sys.argv:
        os.nice(_NICE)
    processes.limit(resource.RLIMIT_AS, _MEMORY)
    processes.limit(resource.RLIMIT_FSIZE, _FILE)
    return processes.serve(_answers)


def _answers(wanted: bytes) -> Iterator[bytes]:
    """Write a report into its batch's folder."""
    job = decoders.decode(wanted, ReportJob)
    target = Path(job.target)
    with StoreReader(Path(job.store)) as reader:
        data = make(reader, [reader.batch(job.batch)], target.parent, job.style)
    files.make_folder(target.parent)
    room = replace(free_room.OUTBOX, size=len(data) + _ROOM)
    try:
        free_room.insist(str(target.parent), room)
        outbox.publish(target, data, replace=True)
        yield b""
    except free_room.NoRoomError as error:
        yield f"{error.filename}: {error.strerror}; {error.fix}".encode()
