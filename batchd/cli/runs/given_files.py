"""Task files that users name on a command line: read, cut to a trial, and looked through."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from batchd import config, pricing
from batchd.cli.display import formatting
from batchd.cli.runs import prompts
from batchd.errors import TaskFileError, UsageError, near
from batchd.log import escape
from batchd.records import Task
from batchd.spool import decoding, taskfile
from batchd.words import listed


def named(file: str, settings: config.Config) -> tuple[str, bytes]:
    """Return the name and the bytes of a file that the user named; ``-``: of standard input.

    Raises ``UsageError``, ``TaskFileError``.
    """
    return prompts.piped() if file == "-" else (Path(file).name, read_file(file, settings))


def read_file(name: str, settings: config.Config) -> bytes:
    """Return a file that the user named. Raises ``UsageError``, ``TaskFileError``."""
    path = Path(name)
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UsageError(f"there is no file {escape(name + where)}")
    if not path.is_file():
        raise UsageError(f"{escape(name)} is not a file")
    # What the user names may be a link; what lies in the inbox may not.
    return taskfile.read(path.resolve(), settings.spool.max_file_bytes)


def cut(name: str, data: bytes, first: int, settings: config.Config) -> bytes:
    """Return a task file with its first tasks only: a trial.

    Raises ``TaskFileError`` with all errors of the whole file, and ``UsageError`` where the first
    tasks come after others.
    """
    if first < 1:
        raise UsageError(f"--first needs a number, 1 or more, not {first}")
    tasks = checked(data, Path(name).name, settings).tasks
    known = {task.id for task in tasks[:first]}
    missing = [f"{t.id} comes after {a}" for t in tasks[:first] for a in t.after if a not in known]
    if missing:
        raise UsageError(
            f"{escape(name)}: the first {first} need later tasks ({listed(missing)}): give a larger --first"
        )
    return _shortened(name, data, first)


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


def checked(data: bytes, name: str, settings: config.Config) -> taskfile.Parsed:
    """Return what a task file asks for.

    Raises ``TaskFileError``; says before that no configuration counts, where that is so.
    """
    try:
        return taskfile.parse(data, name, settings)
    except TaskFileError:
        if not settings.file:
            formatting.complain(f"batchd: {config.NO_FILE}")
        raise


def parsed(data: bytes, name: str, settings: config.Config) -> taskfile.Parsed:
    """Return what a task file asks for, and name the models of it that look misspelt,
    or whose limit in dollars needs a price.

    Raises ``TaskFileError``, as ``checked``.
    """
    found = checked(data, name, settings)
    for model in dict.fromkeys(task.model for task in found.tasks):
        _caution(_doubt(model, settings))
    all_capped = found.budget_usd or settings.budget.per_day_usd
    capped = [task for task in found.tasks if all_capped or task.limits.max_cost_usd]
    for model in dict.fromkeys(m for task in capped for m in _models(task, settings)):
        _caution(_uncapped(model, settings))
    return found


def _models(task: Task, settings: config.Config) -> tuple[str, ...]:
    """Return the models that a task calls: its own, and its judge's."""
    judge = settings.evaluation.judge_model if task.evaluator == "judge" else ""
    return (task.model, judge) if judge else (task.model,)


@functools.cache
def _caution(line: str) -> None:
    """Say something once, however often a file is looked through."""
    formatting.complain(line)


def _uncapped(model: str, settings: config.Config) -> str:
    """Return that a model's calls are refused, as no price is known
    of it and a limit in dollars is set; else nothing.
    """
    known = model.partition("/")[0] in settings.providers
    if not known or pricing.price(model, settings) is not None:
        return ""  # a judge's provider that is not configured is an error of its own
    return (
        f"batchd: no price is known for {model}, and a limit in dollars needs one: its tasks will "
        f'end as error; set input_usd_per_mtok and output_usd_per_mtok in [models."{model}"]'
    )


def _doubt(model: str, settings: config.Config) -> str:
    """Return that a model may be another one misspelt:
    no price is known of it, and those of its like are; else nothing.
    """
    provider, _, own = model.partition("/")
    base_url = settings.providers[provider].base_url
    named = {settings.agent.model, settings.evaluation.judge_model, *settings.models}
    if model in named or pricing.price(model, settings) is not None:
        return ""
    prefix = f"{provider}/"
    used = [each.removeprefix(prefix) for each in named if each.startswith(prefix)]
    names = [*used, *pricing.names(provider, base_url)]
    meant = near(own, names, before=f"{provider}/")
    said = f"batchd: the model {model} is not known; {meant} batchd uses the name as it is."
    return said if meant else ""
