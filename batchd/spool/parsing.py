"""The child that parses task files, apart from the daemon:
one may be made to take minutes, or gigabytes.

A file that takes more processor time than ``[spool] max_parse_s`` ends it.
"""

from __future__ import annotations

import math
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from batchd import processes
from batchd.config import Config
from batchd.errors import Problem, TaskFileError
from batchd.silent_paths import SilentPathError
from batchd.spool import taskfile
from batchd.spool.taskfile import Parsed

#: Tasks in one part of an answer: decoding it holds nothing up.
_AT_ONCE = 256
_NOTHING = Parsed(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseJob:
    """One file."""

    #: Where it lies.
    path: str
    #: What it was called when it was dropped.
    name: str
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedPart:
    """A part of a parsed file, or why there is nothing to be had from it."""

    #: Some of its tasks, and all else that is in it.
    parsed: Parsed = _NOTHING
    #: What is wrong with the file.
    problems: tuple[Problem, ...] = ()
    #: What the system refused: a number of errno, and its text.
    refused: tuple[int, str] | None = None
    #: What does not answer.
    silent: str = ""
    #: Whether nothing more comes.
    last: bool = True


def main() -> int:
    """Parse files until the input ends."""
    processes.end_with(sys.argv[1], expendable=True)
    processes.seal()  # task files hold secrets
    return processes.serve(_answers)


def _answers(pickled: bytes) -> Iterator[bytes]:
    job: ParseJob = pickle.loads(pickled)  # noqa: S301 (the daemon itself wrote it)
    spool = job.config.spool
    processes.limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + spool.max_parse_s))
    processes.limit(resource.RLIMIT_AS, spool.max_parse_mb << 20)
    try:
        data = taskfile.read(Path(job.path), spool.max_file_bytes)
        parsed = taskfile.parse(data, job.name, job.config)
        for end in range(_AT_ONCE, len(parsed.tasks) + _AT_ONCE, _AT_ONCE):
            some = replace(parsed, tasks=parsed.tasks[end - _AT_ONCE : end])
            yield msgspec.json.encode(ParsedPart(parsed=some, last=end >= len(parsed.tasks)))
        return
    except TaskFileError as error:
        part = ParsedPart(problems=error.problems)
    except SilentPathError as error:
        part = ParsedPart(silent=error.path)
    except MemoryError:
        allowed = f"[spool] max_parse_mb allows {spool.max_parse_mb:,}"
        why = f"reading it takes too much memory: {allowed}"
        part = ParsedPart(problems=(Problem("", why, "split it"),))
    except OSError as error:
        part = ParsedPart(refused=(error.errno or 0, error.strerror or str(error)))
    yield msgspec.json.encode(part)
