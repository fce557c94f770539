"""What ``batchd run`` asks who names no file: which one it is, and how its tasks are to run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batchd import config
from batchd.cli import given
from batchd.errors import TaskFileError, UsageError
from batchd.log import escape_text
from batchd.observe import words

#: What a task file is called, as far as anything is usual.
_USUAL = "task.json"
#: How many tasks a trial takes, where the user asks for one.
_TRIAL = 3


def ask(args: argparse.Namespace, settings: config.Config) -> None:
    """Ask for the file and the mode, as long as somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("name a task file: batchd run FILE")
    try:
        # Nothing is offered that is not there.
        usual = _USUAL if Path(_USUAL).is_file() else ""
        name, count = _ask_file(usual, settings)
        parallel = max(1, settings.pool.processes) * settings.pool.agents_per_process
        print(
            f"{words.counted(count, 'task')}. How shall they run?",
            f"  1  parallel, {parallel} at a time",
            "  2  serial, one after another",
            *([f"  3  a trial, the first {_TRIAL} only"] if count > _TRIAL else []),
            "  q  not at all",
            sep="\n",
        )
        choices = ("1", "2", *(["3"] if count > _TRIAL else []), "q")
        while (choice := input("Choose [1]: ").strip() or "1") not in choices:
            print(f"It is one of {', '.join(choices)}.")
    except EOFError:
        choice = "q"
    if choice == "q":
        raise UsageError("nothing was started")
    args.files = [name]
    args.serial = choice == "2"
    args.first = _TRIAL if choice == "3" else args.first


def _ask_file(usual: str, settings: config.Config) -> tuple[str, int]:
    """Ask for a task file until one is valid; return its name, and how many tasks it has."""
    while True:
        name = input(f"Task file [{usual}]: " if usual else "Task file: ").strip() or usual
        if not name:
            raise UsageError("nothing was started: it needs a task file")
        try:
            data = given.read_file(name, settings)
            return name, len(given.checked(data, Path(name).name, settings).tasks)
        except (UsageError, TaskFileError) as error:
            print(escape_text(str(error)))
