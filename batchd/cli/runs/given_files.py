"""What users give on a command line to be worked on: task files, standard input, or a prompt;
read, cut to a trial, and looked through.
"""

from __future__ import annotations

import argparse
import functools
import glob
import json
import re
import sys
from pathlib import Path
from typing import Any

from batchd import catalog, config, pricing
from batchd.cli.display import formatting
from batchd.errors import TaskFileError, UsageError
from batchd.log import escape
from batchd.pricing import Prices
from batchd.records import Task
from batchd.spool import decoding, taskfile
from batchd.words import listed

#: How JSON begins that holds anything: `{{` and `[Note]` begin a prompt.
_JSON = re.compile(r"""\s*(\{\s*["}]|\[\s*["{\[\]])""")
_IDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: The options that say more of a prompt; in a task file they are keys.
_OF_PROMPTS = ("each", "model", "check", "dir", "repo", "budget")


def prompt_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a task of a prompt, and what it is worked on with."""
    group = parser.add_argument_group("one line instead of a file")
    group.add_argument("--prompt", metavar="TEXT", help="what is to be done; -: standard input")
    group.add_argument("--model", metavar="PROVIDER/MODEL", help="the model of the prompt's task")
    group.add_argument(
        "--check", metavar="COMMAND", help="a command that accepts the work with exit code 0"
    )
    group.add_argument("--dir", metavar="DIR", help="the directory to work in, as it is")
    group.add_argument("--repo", metavar="DIR", help="a git repository to work in a clone of")
    group.add_argument("--budget", type=float, metavar="USD", help="the most that it may cost")
    group.add_argument(
        "--each", metavar="GLOB", help="one task for each directory that matches, in place of --dir"
    )


def prompted(args: argparse.Namespace) -> tuple[str, bytes] | None:
    """Return the name and the bytes of the task file that ``--prompt`` stands for; None: it is not
    given.

    Standard input is a task file, where it is JSON or JSONL. Raises ``UsageError``.
    """
    given = [f"--{name}" for name in _OF_PROMPTS if getattr(args, name) is not None]
    text, ending = args.prompt, ".md"
    if text == "-":
        text, ending = _standard_input()
    if text is not None and ending == ".md":
        if not text.strip():
            raise UsageError("--prompt is empty: say what is to be done")
        return "prompt.json", _task_file(args, text)
    if given:
        what = "--prompt" if text is None else "a prompt, and standard input is a task file"
        raise UsageError(f"{listed(given)} goes with {what}; in a task file, it is a key")
    return None if text is None else (f"stdin{ending}", text.encode("utf-8", "surrogateescape"))


def piped() -> tuple[str, bytes]:
    """Return standard input as a task file, by what it is: JSON, JSONL, or a prompt."""
    text, ending = _standard_input()
    if not text.strip():
        raise UsageError("standard input is empty: name a task file, or give a --prompt")
    return f"stdin{ending}", text.encode("utf-8", "surrogateescape")


def _standard_input() -> tuple[str, str]:
    """Return the text of standard input, and the ending that a file of it has."""
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not _JSON.match(text.removeprefix("\ufeff")):
        return text, ".md"
    first, _, more = text.strip().partition("\n")
    try:
        alone = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        alone = False
    return text, ".jsonl" if alone and more else ".json"


def _task_file(args: argparse.Namespace, prompt: str) -> bytes:
    """Return the task file of a prompt and its options."""
    batch = {
        "model": args.model,
        "check": args.check,
        "dir": args.dir and str(Path(args.dir).absolute()),
        # It may also be a URL.
        "repo": str(Path(args.repo).absolute())
        if args.repo and Path(args.repo).exists()
        else args.repo,
        "budget_usd": args.budget,
    }
    value: dict[str, Any] = {key: one for key, one in batch.items() if one is not None}
    value["tasks"] = [{"first_prompt": prompt}]
    if args.each is not None:
        if args.dir is not None:
            raise UsageError("--each is in place of --dir: leave one of them out")
        found = [Path(p).absolute() for p in sorted(glob.glob(args.each)) if Path(p).is_dir()]
        if not found:
            raise UsageError(f"no directory matches {escape(args.each)}")
        names = [p.name for p in found]
        # Results are easier to find under the directories' names, where all of them serve as ids.
        fit = len(set(names)) == len(names) and all(_IDS.fullmatch(n) for n in names)
        value["tasks"] = [
            {"dir": str(p), "first_prompt": prompt, **({"id": p.name} if fit else {})}
            for p in found
        ]
    return json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogateescape")


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
    provider = settings.providers.get(model.partition("/")[0])
    if provider is None or Prices(settings.models).price(model, provider.base_url) is not None:
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
    if model in named or Prices(settings.models).price(model, base_url) is not None:
        return ""
    prefix = f"{provider}/"
    used = [each.removeprefix(prefix) for each in named if each.startswith(prefix)]
    near = catalog.nearest(own, [*used, *pricing.names(provider, base_url)])
    if not near:
        return ""
    meant = listed([f"{provider}/{each}" for each in near])
    return f"batchd: the model {model} is not known; do you mean {meant}? batchd uses the name as it is."
