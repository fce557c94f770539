"""What ``batchd run`` asks who names no file: which one it is, and how its tasks are to run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batchd import config, words
from batchd.cli import estimate
from batchd.cli.display import formatting
from batchd.cli.runs import given_files
from batchd.errors import TaskFileError, UsageError
from batchd.spool.taskfile import Parsed

#: What a task file is called, as far as anything is usual.
_USUAL = "task.json"
#: How many tasks a trial takes, where the user asks for one.
_TRIAL = 3
_LEAVE = "q"


def ask(args: argparse.Namespace, settings: config.Config) -> None:
    """Ask for the file and the mode, as long as somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("name a task file: batchd run FILE")
    try:
        # Nothing is offered that is not there.
        usual = _USUAL if Path(_USUAL).is_file() else ""
        name, parsed = _ask_file(usual, settings)
        print("Estimating …", end="\r", flush=True)
        print("\x1b[K", end="")
        formatting.say(*estimate.brief(name, parsed, settings))
        choice = _ask_mode(len(parsed.tasks), settings)
    except EOFError:
        choice = _LEAVE
    if choice == _LEAVE:
        raise UsageError("nothing was started")
    args.files = [name]
    args.serial = choice == "2"
    args.first = _TRIAL if choice == "3" else args.first


def _ask_mode(count: int, settings: config.Config) -> str:
    """Ask how the tasks are to run, until the answer is one that is offered."""
    parallel = max(1, settings.pool.processes) * settings.pool.agents_per_process
    print(
        f"{words.counted(count, 'task')}. How shall they run?",
        f"  1  parallel, {parallel} at a time",
        "  2  serial, one after another",
        *([f"  3  a trial, the first {_TRIAL} only"] if count > _TRIAL else []),
        f"  {_LEAVE}  not at all",
        sep="\n",
    )
    choices = ("1", "2", *(["3"] if count > _TRIAL else []), _LEAVE)
    while (choice := input("Choose [1]: ").strip().lower() or "1") not in choices:
        print(f"{choice!r} is not a choice. Type one of {', '.join(choices)}.")
    return choice


def _ask_file(usual: str, settings: config.Config) -> tuple[str, Parsed]:
    """Ask for a task file until one is valid; return its name, and what it asks for."""
    while True:
        name = input(f"Task file [{usual}]: " if usual else "Task file: ").strip() or usual
        if name == _LEAVE and not Path(name).exists():
            raise EOFError
        if not name:
            print(f"Type the name of a task file, or {_LEAVE} to leave.")
            continue
        try:
            data = given_files.read_file(name, settings)
            return name, given_files.checked(data, Path(name).name, settings)
        except (UsageError, TaskFileError) as error:
            formatting.say(*str(error).splitlines())
