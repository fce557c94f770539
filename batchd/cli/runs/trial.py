"""A trial: the first tasks of a file, for ``run --first N`` and ``submit --first N``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchd.cli.runs import given_files
from batchd.config import Config
from batchd.errors import UsageError
from batchd.log import escape
from batchd.records import Task
from batchd.spool import decoding
from batchd.words import listed


def cut(name: str, data: bytes, first: int, settings: Config) -> bytes:
    """Return a task file with its first tasks only.

    Raises ``TaskFileError`` with all errors of the whole file, and ``UsageError`` where the first
    tasks come after others.
    """
    tasks = given_files.checked(data, Path(name).name, settings).tasks
    enough = _closed(tasks, first)
    if enough > first:
        known = {task.id for task in tasks[:first]}
        missing = [
            f"{t.id} comes after {a}" for t in tasks[:first] for a in t.after if a not in known
        ]
        raise UsageError(
            f"{escape(name)}: the first {first} need later tasks ({listed(missing)}): give --first {enough}"
        )
    return _shortened(name, data, first)


def _closed(tasks: Sequence[Task], first: int) -> int:
    """Return how many tasks, ``first`` or more, come after none behind them."""
    place = {task.id: number for number, task in enumerate(tasks, 1)}
    seen, upto = 0, first
    while seen < min(upto, len(tasks)):
        upto = max([upto, *(place[name] for name in tasks[seen].after)])
        seen += 1
    return upto


def _shortened(name: str, data: bytes, first: int) -> bytes:
    """Return a task file with its first tasks only; one that cannot be read as it is."""
    suffix = Path(name).suffix.lower()
    if suffix in decoding.LINES:
        return b"".join([line for line in data.splitlines(keepends=True) if line.strip()][:first])
    if suffix in decoding.PLAIN:
        return data
    if suffix != ".json":
        raise UsageError(f"{escape(name)}: --first cannot shorten a file with this ending")
    try:
        value: Any = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return data  # the parser says what is wrong
    if isinstance(value, list):
        value = value[:first]
    elif isinstance(value, dict) and isinstance(value.get("tasks"), list):
        value["tasks"] = value["tasks"][:first]
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
