"""The process that parses task files, apart from the daemon:
one may be made to take minutes, or gigabytes.

Started by the daemon as ``python -P -m batchd.spool PID``, the number being the daemon's. It ends
with its input, and with its daemon;
a file that takes more processor time than ``[spool] max_parse_s`` ends it too.
"""

from __future__ import annotations

import math
import pickle
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from batchd import processes, sealing
from batchd.errors import Problem, TaskFileError
from batchd.silent_paths import SilentPathError
from batchd.spool import taskfile
from batchd.spool.parse_job import HEAD, ParsedPart, ParseJob, parts


def main() -> int:
    """Parse files until the input ends."""
    processes.end_with(sys.argv[1], expendable=True)
    sealing.seal()  # task files hold secrets
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(bytes(HEAD))  # it is ready
    answers.flush()
    while head := source.read(HEAD):
        job: ParseJob = pickle.loads(source.read(int.from_bytes(head)))  # noqa: S301 (the daemon itself wrote it)
        _bound(job)
        for part in _answer(job):
            _send(answers, part)
        answers.flush()
    return 0


def _bound(job: ParseJob) -> None:
    """Set the kernel's limits for the parsing of this file."""
    spool = job.config.spool
    until = math.ceil(time.process_time() + spool.max_parse_s)
    for what, most in (
        (resource.RLIMIT_CPU, until),
        (resource.RLIMIT_AS, spool.max_parse_mb << 20),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))


def _answer(job: ParseJob) -> Iterator[ParsedPart]:
    try:
        data = taskfile.read(Path(job.path), job.config.spool.max_file_bytes)
        parsed = taskfile.parse(data, job.name, job.config)
        yield from parts(parsed)
    except TaskFileError as error:
        yield ParsedPart(problems=error.problems)
    except SilentPathError as error:
        yield ParsedPart(silent=error.path)
    except MemoryError:
        allowed = f"[spool] max_parse_mb allows {job.config.spool.max_parse_mb:,}"
        yield ParsedPart(
            problems=(Problem("", f"reading it takes too much memory: {allowed}", "split it"),)
        )
    except OSError as error:
        yield ParsedPart(refused=(error.errno or 0, error.strerror or str(error)))
    except Exception:  # noqa: BLE001 (a bug, which the daemon logs: this file is refused, and the next may not be)
        yield ParsedPart(bug=traceback.format_exc())


def _send(answers: BinaryIO, part: ParsedPart) -> None:
    body = msgspec.json.encode(part)
    answers.write(len(body).to_bytes(HEAD) + body)


if __name__ == "__main__":
    sys.exit(main())
