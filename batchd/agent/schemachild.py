"""The child that validates an answer: ``{"schema": …, "answer": "text"}``.

It says what is wrong with it; nothing: it is valid.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator

import jsonschema
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from batchd import processes

_CPU_S = 5
_MEMORY = 1 << 30
_MAX_PROBLEMS = 5
_MAX_CHARS = 2000


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
    processes.end_with(sys.argv[1])
    processes.limit(resource.RLIMIT_CPU, _CPU_S)
    processes.limit(resource.RLIMIT_AS, _MEMORY)
    return processes.serve(_answers)


def _answers(job: bytes) -> Iterator[bytes]:
    try:
        found = problems(job)
    except (jsonschema.exceptions.SchemaError, Unresolvable) as error:
        found = [f"the schema cannot be used: {error}"[:_MAX_CHARS]]
    except OverflowError as error:
        found = [f"a number in the answer is too large: {error}"]
    except RecursionError:
        found = ["the answer or its schema leads round in circles, or is nested too deep"]
    # Whatever half of a letter a key holds.
    yield "\n".join(found).encode("utf-8", "replace")
