"""A task file made of what stands on a command line, or comes on standard input."""

from __future__ import annotations

import argparse
import glob
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchd.errors import UsageError
from batchd.log import escape
from batchd.words import listed

#: How JSON begins that holds anything: `{{` and `[Note]` begin a prompt.
_JSON = re.compile(r"""\s*(\{\s*["}]|\[\s*["{\[\]])""")
_IDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: What says more of a prompt; in a task file they are keys.
OPTIONS = ("each", "model", "check", "dir", "repo", "budget")


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a task of a prompt, and what it is worked on with."""
    group = parser.add_argument_group("one line instead of a file")
    group.add_argument("--prompt", metavar="TEXT", help="what is to be done; -: standard input")
    group.add_argument(
        "--model", action="append", metavar="PROVIDER/MODEL", help="the model of the prompt's task"
    )
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
    options = {name: one for name in OPTIONS if (one := getattr(args, name)) is not None}
    if "model" in options:
        options["model"], *more = options["model"]
        if more:
            several = "write a task file with a task for each"
            raise UsageError(f"a prompt has one --model: for several, {several}")
    text, ending = args.prompt, ".md"
    if text == "-":
        text, ending = _standard_input()
    if text is not None and ending == ".md":
        return task_file(text, options)
    if options:
        what = "--prompt" if text is None else "a prompt, and standard input is a task file"
        given = listed([f"--{name}" for name in options])
        raise UsageError(f"{given} goes with {what}; in a task file, it is a key")
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


def task_file(prompt: str, options: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the name and the bytes of the task file of a prompt and its ``OPTIONS``.

    The name has nothing of the prompt: metrics, traces and ``status.json`` show it to everybody.
    Raises ``UsageError``.
    """
    if not prompt.strip():
        raise UsageError("--prompt is empty: say what is to be done")
    value: dict[str, Any] = {key: options[key] for key in ("model", "check") if key in options}
    if "dir" in options:
        value["dir"] = str(Path(options["dir"]).absolute())
    if "repo" in options:  # it may also be a URL
        there = Path(options["repo"])
        value["repo"] = str(there.absolute() if there.exists() else options["repo"])
    if "budget" in options:
        value["budget_usd"] = options["budget"]
    value["tasks"] = [{"first_prompt": prompt}]
    if "each" in options:
        if "dir" in options:
            raise UsageError("--each is in place of --dir: leave one of them out")
        found = [Path(p).absolute() for p in sorted(glob.glob(options["each"])) if Path(p).is_dir()]
        if not found:
            raise UsageError(f"no directory matches {escape(options['each'])}")
        names = [p.name for p in found]
        # Results are easier to find under the directories' names, where all of them serve as ids.
        fit = len(set(names)) == len(names) and all(_IDS.fullmatch(n) for n in names)
        value["tasks"] = [
            {"dir": str(p), "first_prompt": prompt, **({"id": p.name} if fit else {})}
            for p in found
        ]
    data = json.dumps(value, ensure_ascii=False, indent=2).encode("utf-8", "surrogateescape")
    return "prompt.json", data
