"""The child that validates an answer. Run by its path; imports nothing of batchd.

Reads ``{"schema": …, "answer": "text"}``; exits 0 if the answer is valid, else 1 with the problems.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

import jsonschema
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

_CPU_S = 5
_MEMORY = 1 << 30
_MAX_PROBLEMS = 5
_MAX_CHARS = 2000
_PR_SET_PDEATHSIG = 1


def problems(job: bytes) -> list[str]:
    """Return what is wrong with the answer; nothing if it is valid."""
    task = json.loads(job)
    try:
        answer = json.loads(task["answer"])
    except ValueError as error:
        return [f"Your final message must be JSON and nothing else: {error}"]
    schema = task["schema"]
    # An empty registry: a $ref to a remote document is an error here, never a download.
    validator = validator_for(schema)(schema, registry=Registry())
    found = sorted(validator.iter_errors(answer), key=lambda e: list(map(str, e.absolute_path)))
    return [f"{error.json_path}: {error.message}"[:_MAX_CHARS] for error in found[:_MAX_PROBLEMS]]


def main() -> int:
    """Validate what stands on standard input. Ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        return 1  # the parent died before the line above
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = problems(sys.stdin.buffer.read())
    except (jsonschema.exceptions.SchemaError, Unresolvable) as error:
        found = [f"the schema cannot be used: {error}"[:_MAX_CHARS]]
    except OverflowError as error:
        found = [f"a number in the answer is too large: {error}"]
    except RecursionError:
        found = ["the answer or its schema leads round in circles, or is nested too deep"]
    # Whatever the locale, and whatever half of a letter a key holds.
    sys.stdout.buffer.write("\n".join(found).encode("utf-8", "replace"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
