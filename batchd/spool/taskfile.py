"""A dropped file becomes tasks, or all of its errors at once.

That is done in a child, apart from the daemon: one may be made to take minutes, or gigabytes. A
file that takes more processor time than ``[spool] max_parse_s`` ends the child.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import re
import resource
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from batchd import processes, records, trees
from batchd.config import Config, reading
from batchd.errors import Problem, TaskFileError
from batchd.gone import GONE_TASK_KEYS
from batchd.log import escape
from batchd.silent_paths import SilentPathError
from batchd.spool import crosscheck, decoding, taskspec
from batchd.spool.decoding import Place

#: What a person reads; a file with more errors than these has one cause.
MAX_PROBLEMS = 200
#: So many errors are found at most: with them, no more of the file is looked at.
_MAX_ERRORS = 5_000
#: A file of more tasks is one that went wrong, or is better split.
MAX_TASKS = 50_000
#: Values of a JSON file: 60 MB of empty brackets are 20 million,
#: and would take gigabytes of memory.
_MAX_VALUES = 4_000_000

#: What a batch says for all of its tasks, times their number: 250 kB can ask for gigabytes.
_MAX_EXPANDED_BYTES = 1 << 28

#: No fault of the file: the next try may well work.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}

#: Stands for a line that is no JSON: reported already, but it has a place and so an id.
BROKEN = object()

_Model = TypeVar("_Model", bound=BaseModel)

_PATTERNS = {
    "^[A-Za-z0-9]": "it must be 1 to 64 letters, digits, _ or -, and begin with a letter or digit",
    "^[A-Za-z_]": "a variable's name is letters, digits and _, and begins with no digit",
    r"^[^\x00-,": "a batch's name is letters, digits, _ and -, as `batchd status` shows it",
    r"^[^\x00]": "it cannot hold a NUL character",
    "^[a-zA-Z0-9]": "it must be 1 to 63 letters, digits, '.', '_' or '-', and begin with a letter or digit",
    r"^[^\x00-\x20": "a branch, tag or commit holds no blanks and no control characters",
}


#: What is to be no text: where one stands there all the same, it is shown.
_CLOSED = frozenset({"hosts", "bool_type", "int_type", "float_type"})
#: By key: the model of what stands within.
_INNER: Mapping[Any, type[BaseModel]] = {
    "limits": taskspec.Limits,
    "env": taskspec.SecretSpec,
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A valid task file."""

    tasks: tuple[records.Task, ...]
    #: Caps the whole batch; 0 for none.
    budget_usd: float = 0.0
    #: So many of its tasks at a time; 0: as many as there are slots.
    parallel: int = 0
    #: The batches that must have completed first.
    after_batches: tuple[str, ...] = ()


@dataclass(slots=True)
class _Document:
    """A file's values before validation, whatever its form."""

    tasks: Sequence[Any] = ()
    #: Everything of a batch but its tasks.
    batch: Mapping[str, Any] = field(default_factory=dict)
    #: How a place in the task at this index is written.
    place: Callable[[int, Place], str] = lambda index, at: decoding.written(("tasks", index, *at))

    def drop(self, keys: Iterable[str]) -> set[str]:
        """Leave keys out, wherever they stand; return those that stood anywhere."""
        tables = [each for each in (self.batch, *self.tasks) if isinstance(each, dict)]
        return {key for key in keys for each in tables if each.pop(key, None) is not None}


def read(path: Path, max_bytes: int, owners: Collection[int] | None = None) -> bytes:
    """Return the bytes of a dropped file, which nothing vouches for.

    ``owners``: of all users, those whose it may be. Only they may have changed it then.
    Raises ``TaskFileError`` where it is not a regular file, is larger than ``max_bytes`` or cannot
    be read; ``OSError`` where it is this process that has no descriptor or memory left for it.
    """

    def refused(message: str) -> TaskFileError:
        return TaskFileError((Problem("", message),), escape(path.name))

    try:
        with trees.held(os.open(path, trees.OPEN_FILE)) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refused("it is not a regular file")
            if owners is not None and (
                status.st_uid not in owners or status.st_mode & stat.S_IWOTH
            ):
                raise refused("it belongs to somebody else, who may have changed it since")
            size, data = status.st_size, b""
            if size <= max_bytes:
                with open(descriptor, "rb", closefd=False) as file:
                    data = file.read(max_bytes + 1)
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        raise refused(f"the file cannot be read: {error.strerror}") from None
    if max(size, len(data)) > max_bytes:
        has, may = max(size, len(data)) / 1e6, max_bytes / 1e6
        raise refused(f"the file has {has:,.1f} MB, [spool] max_file_bytes allows {may:,.1f}")
    return data


def parse(data: bytes, filename: str, config: Config, *, dropped: set[str] | None = None) -> Parsed:
    """Return the tasks of a file, every default filled in.

    ``dropped``: takes the keys that are gone, which are left out of an old file; None: they are
    wrong.

    The ending says what it is: .json, .jsonl (one task a line), .md or .txt (a plain prompt).
    Raises ``TaskFileError`` with all problems at once.
    """
    problems: list[Problem] = []
    try:
        document = _document(data, Path(filename).suffix.lower(), problems)
    except TaskFileError as error:
        raise TaskFileError((*problems, *error.problems), escape(filename)) from None
    if dropped is not None:
        dropped |= document.drop(GONE_TASK_KEYS)
    batch = _validated(taskspec.BatchKeys, document.batch, decoding.written, problems)
    if batch.first_prompt is None and document.batch.get("first_prompt") is not None:
        # It is reported as wrong; its tasks need not report it as missing.
        batch = batch.model_copy(update={"first_prompt": "…"})
    specs = {}
    for index, raw in enumerate(document.tasks):
        if len(problems) >= _MAX_ERRORS:
            raise _refusal(problems, filename)
        place = partial(document.place, index)
        if isinstance(raw, dict) and {"custom_id", "body"} <= raw.keys():
            said = "this is a request of OpenAI's Batch API"
            hint = "write its prompt as first_prompt, and its custom_id as id"
            problems.append(Problem(place(()), said, hint))
        elif isinstance(raw, dict):
            specs[index] = _validated(taskspec.TaskSpec, raw, place, problems)
        elif raw is not BROKEN:
            hint = 'such as {"first_prompt": "…"}'
            problems.append(Problem(place(()), "it must be an object", hint))
    ids = {i: _id(raw, i) for i, raw in enumerate(document.tasks)}
    if not problems and (wrong := _multiplied(document)):
        problems.append(wrong)
        raise _refusal(problems, filename)
    tasks, found = crosscheck.check(config, batch, specs, ids, _MAX_ERRORS)
    problems += [
        replace(p, place=decoding.written(at) if i is None else document.place(i, at))
        for i, at, p in found
    ]
    if problems:
        raise _refusal(problems, filename)
    return Parsed(
        tasks,
        batch.budget_usd or 0.0,
        batch.parallel or 0,
        tuple(dict.fromkeys(batch.after_batches or ())),
    )


def _multiplied(document: _Document) -> Problem | None:
    """Return that what a batch says once is too much
    to be kept with each of its tasks, where it is.
    """
    count, once = len(document.tasks), len(msgspec.json.encode(document.batch))
    if count * once <= _MAX_EXPANDED_BYTES:
        return None
    why = (
        f"what the batch says for all tasks has {once / 1e6:,.3f} MB and is kept with each: "
        f"{count:,} tasks would take {count * once / 1e6:,.0f} MB, more than {_MAX_EXPANDED_BYTES / 1e6:,.0f}"
    )
    return Problem(
        "", why, "split the file, or put what the tasks share into a file that they read"
    )


def _refusal(problems: list[Problem], filename: str) -> TaskFileError:
    # What JSON or UTF-8 does not have is found first,
    # and by pydantic again: once a place is enough.
    once = list({p.place or p: p for p in reversed(problems)}.values())[::-1]
    once.sort(key=_order)
    shown = once[:MAX_PROBLEMS]
    if len(once) > len(shown):
        least = "at least " if len(problems) >= _MAX_ERRORS else ""
        shown.append(Problem("", f"and {least}{len(once) - len(shown)} more errors"))
    return TaskFileError(tuple(shown), escape(filename))


def _order(problem: Problem) -> list[tuple[int, str]]:
    """Return what sorts places as a reader goes through them: ``tasks[9]`` before ``tasks[10]``."""
    parts = re.split(r"([0-9]+)", problem.place)
    # By their lengths:
    # to make an integer of a key of a million digits takes minutes, and Python refuses.
    return [
        (len(number := part.lstrip("0")), number) if i % 2 else (0, part)
        for i, part in enumerate(parts)
    ]


def _id(raw: Any, index: int) -> str:
    """Return a task's id, also where the task itself is not valid."""
    given = raw.get("id") if isinstance(raw, dict) else None
    return given if isinstance(given, str) else f"{index + 1:03d}"


def _document(data: bytes, ending: str, problems: list[Problem]) -> _Document:
    """Return the file's values. Raises ``TaskFileError`` where there are none to look at, or too
    many.
    """
    if ending not in decoding.PLAIN and sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise _no_values(f"the file holds more than {_MAX_VALUES:,} values", "split it")
    source = decoding.text(data)
    if isinstance(source, Problem):
        raise TaskFileError((source,))
    if not source.strip():
        raise _no_values("the file is empty")
    if ending in decoding.PLAIN:
        prompt = source.replace("\r\n", "\n").replace("\r", "\n")
        return _Document([{"first_prompt": prompt}], place=lambda _, at: decoding.written(at))
    if ending in decoding.LINES:
        document = _lines(source, problems)
    elif ending == ".json":
        value = decoding.json_value(source)
        if isinstance(value, Problem):
            raise TaskFileError((value,))
        _note_unfit(value, decoding.written, problems)
        document = _tree(_without_schema(value, decoding.written, problems), problems)
    else:
        found = f"the ending {ending!r} is not known" if ending else "the name has no ending"
        raise _no_values(found, f"use one of {', '.join(decoding.ENDINGS)}")
    if len(document.tasks) > MAX_TASKS:
        split = "split it; of a .jsonl or .ndjson: split -l 50000 --additional-suffix=.jsonl FILE"
        raise _no_values(f"the file holds more than {MAX_TASKS:,} tasks", split)
    return document


def _no_values(why: str, fix: str = "", place: str = "") -> TaskFileError:
    return TaskFileError((Problem(place, why, fix),))


def _without_schema(value: Any, written: Callable[[Place], str], problems: list[Problem]) -> Any:
    """Return a value without the schema by which an editor checks it:
    that says nothing of any task.
    """
    if not isinstance(value, dict) or taskspec.SCHEMA not in value:
        return value
    if not isinstance(value[taskspec.SCHEMA], str | None):
        problems.append(Problem(written((taskspec.SCHEMA,)), "it must be the address of a schema"))
    return {key: below for key, below in value.items() if key != taskspec.SCHEMA}


def _note_unfit(value: Any, written: Callable[[Place], str], problems: list[Problem]) -> None:
    """Add what Python reads in a value but JSON or UTF-8 does not have."""
    room = max(0, _MAX_ERRORS - len(problems))
    problems += [Problem(written(at), why) for at, why in islice(decoding.unfit(value), room)]


def _lines(source: str, problems: list[Problem]) -> _Document:
    tasks: list[Any] = []
    numbers: list[int] = []
    if source.count("\n") + source.count("\r") > 4 * MAX_TASKS:  # empty lines are allowed
        return _Document([BROKEN] * (MAX_TASKS + 1))
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        numbers.append(number)
        value = decoding.json_value(line)
        if isinstance(value, Problem) and len(problems) < _MAX_ERRORS:
            at = value.place.replace("line 1", f"line {number}") or f"line {number}"
            problems.append(replace(value, place=at))
        if isinstance(value, Problem):
            value = BROKEN
        tasks.append(value)

    def place(index: int, at: Place) -> str:
        return ", ".join(filter(None, (f"line {numbers[index]}", decoding.written(at))))

    for index, value in enumerate(tasks):
        _note_unfit(value, partial(place, index), problems)
        tasks[index] = _without_schema(value, partial(place, index), problems)
    return _Document(tasks, place=place)


def _tree(value: Any, problems: list[Problem]) -> _Document:
    """Distinguish a batch from a bare list and from a single task. Raises ``TaskFileError``."""
    if isinstance(value, list):
        document = _Document(value, place=lambda index, at: decoding.written((index, *at)))
    elif not isinstance(value, dict):
        raise _no_values("it must be an object with tasks, a list of tasks or a task")
    elif isinstance(tasks := value.get("tasks"), list):
        document = _Document(tasks, {k: v for k, v in value.items() if k != "tasks"})
    elif "tasks" in value:
        raise _no_values("it must be a list", place="tasks")
    elif value.keys() & taskspec.TaskSpec.model_fields.keys():
        of_batch = taskspec.OfBatches.model_fields.keys()
        batch = {k: v for k, v in value.items() if k in of_batch}
        task = {k: v for k, v in value.items() if k not in of_batch}
        return _Document([task], batch, place=lambda _, at: decoding.written(at))
    else:
        wrong = ", ".join(sorted(ascii(key) for key in value)[:5]) or "nothing"
        raise _no_values("this key is needed, or first_prompt", f"here is {wrong}", "tasks")
    if not document.tasks:
        problems.append(Problem("tasks", "the file holds no task"))
    return document


def _validated(
    model: type[_Model],
    raw: Mapping[str, Any],
    written: Callable[[Place], str],
    problems: list[Problem],
) -> _Model:
    """Return what is valid of ``raw``, so that the rest of it is checked all the same."""
    # A key that is no text has been reported by now; pydantic would not say which it is.
    raw = {key: value for key, value in raw.items() if not decoding.broken(key)}
    raw = _bounded_keys(raw, model, written, problems)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems += _complaints(model, found, written)
        wrong = {one["loc"][0] for one in found}
    return model.model_validate({key: value for key, value in raw.items() if key not in wrong})


def _bounded_keys(
    raw: dict[str, Any],
    model: type[BaseModel],
    written: Callable[[Place], str],
    problems: list[Problem],
) -> dict[str, Any]:
    """Return an object with no more unknown keys than are shown:
    pydantic takes a kilobyte for each.
    """
    known = model.model_fields
    if len(raw) > MAX_PROBLEMS + len(known):
        dropped = set([key for key in raw if key not in known][MAX_PROBLEMS:])
        problems.append(Problem(written(()), f"{len(dropped):,} more keys are unknown"))
        raw = {key: value for key, value in raw.items() if key not in dropped}
    limits = raw.get("limits")
    if isinstance(limits, dict) and len(limits) > MAX_PROBLEMS:
        below = partial(_below, written, "limits")
        raw["limits"] = _bounded_keys(limits, taskspec.Limits, below, problems)
    return raw


def _below(written: Callable[[Place], str], key: str, place: Place) -> str:
    return written((key, *place))


def _complaints(
    model: type[BaseModel], errors: Sequence[ErrorDetails], written: Callable[[Place], str]
) -> Iterator[Problem]:
    for found in errors:
        at = found["loc"]
        # pydantic adds this where the fault is a key, not its value.
        at = at[:-1] if at and at[-1] == "[key]" else at
        known = (_INNER.get(at[0], model) if at else model).model_fields
        if at[:1] == ("env",):
            at = at[:2] + at[3:]  # pydantic adds which kind of value it took this for
        if found["type"] == "string_pattern_mismatch":
            pattern = str(found["ctx"]["pattern"])
            why = next(text for start, text in _PATTERNS.items() if pattern.startswith(start))
            yield Problem(written(at), why)
        elif found["type"] == "extra_forbidden" and at[-1] in GONE_TASK_KEYS:
            yield Problem(written(at), "there is no such key any more", GONE_TASK_KEYS[str(at[-1])])
        else:
            yield replace(_complaint(found, known), place=written(at))


def _complaint(error: ErrorDetails, known: Collection[str]) -> Problem:
    """Return what pydantic found, in our words; ``known`` are the keys beside it."""
    kind, place = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return reading.unknown(str(place[-1]), known)
    if kind == "missing":
        return Problem("", "this key is needed")
    if kind == "model_type":
        return Problem("", "it must be an object")
    said = re.sub(r"^[A-Z]\w* should", "it must", error["msg"])
    words = kind in {"literal_error", "fallback"}
    return reading.misread(
        place, said, error["input"], closed=words or kind in _CLOSED, words=words
    )


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
        data = read(Path(job.path), spool.max_file_bytes)
        parsed = parse(data, job.name, job.config)
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
